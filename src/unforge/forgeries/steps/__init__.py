"""Steps that several forgeries share: photographs and crops, the camera, regions, blending, saving."""
