import pytest
import torch

from unforge.nn.resnet import BasicBlock, Bottleneck, ResNet


def test_maps_have_the_widths_and_strides_of_a_dilated_resnet50() -> None:
    with torch.device("meta"):
        network, image = ResNet().eval(), torch.empty(1, 3, 64, 96)
        shapes = [tuple(x.shape[1:]) for x in network(image)]
    assert shapes == [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 4, 6)]
    assert [block.conv2.dilation for block in network.layer4] == [(1, 1), (2, 2), (4, 4)]
    assert sum(p.numel() for p in network.parameters()) == 25_557_032, "ResNet-50's, as published"


def test_blocks_add_their_input() -> None:
    for block in (Bottleneck(8, 2).eval(), BasicBlock(8, 8).eval()):
        assert block.downsample is None
        torch.nn.init.zeros_([m for m in block.children() if isinstance(m, torch.nn.Conv2d)][-1].weight)
        x = torch.randn(1, 8, 5, 5)
        torch.testing.assert_close(block(x), x.relu())


def test_a_bottleneck_strides_in_its_3x3_convolution() -> None:
    block = Bottleneck(8, 4, stride=2)
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
    assert block(torch.rand(2, 8, 9, 8)).shape == (2, 16, 5, 4)


def test_rates_must_be_one_a_block() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\) for a last stage of 3 blocks"):
        ResNet(rates=(1, 2))
