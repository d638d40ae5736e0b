"""Methods by name: configuration, building, saving, counting."""

import json

import pytest
import torch

from unforge import counts, methods


def test_names_are_the_files() -> None:
    assert {"sparsevit", "constant"} <= set(methods.names())


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_the_contract(name: str) -> None:
    module = methods.load_module(name)
    assert module.VARIANTS[""] == module.Config()
    assert isinstance(module.SMALL, module.Config)
    assert module.Config().recipe.source
    assert callable(module.build)


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(ValueError, match="sparsevit"):
        methods.load_module("sparsvit")
    with pytest.raises(ValueError, match="srm_lff"):
        methods.config("sparsevit", "srm_lf")
    with pytest.raises(ValueError, match="'small' nor 'paper'"):
        methods.config("sparsevit", "", "large")


@pytest.mark.parametrize("variant", ["", "stem_volo_sparse", "bayar_lff"])
def test_saved_and_loaded_methods_predict_alike(tmp_path, variant: str) -> None:
    torch.manual_seed(0)
    config = methods.config("sparsevit", variant, "small")
    method = methods.build("sparsevit", config).eval()
    methods.save(method, "sparsevit", variant, config, tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())
    assert (entry["method"], entry["variant"], entry["scale"]) == ("sparsevit", variant, "small")
    torch.manual_seed(1)
    loaded = methods.load(tmp_path)
    assert loaded.config == config
    assert not loaded.training
    image = torch.rand(1, 3, 48, 40)
    torch.testing.assert_close(loaded.predict(image).mask, method.predict(image).mask, atol=0, rtol=0)
    first = (tmp_path / "model.safetensors").read_bytes()
    methods.save(method, "sparsevit", variant, config, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_a_config_of_another_version_is_refused(tmp_path) -> None:
    config = methods.config("constant", "all", "small")
    methods.save(methods.build("constant", config), "constant", "all", config, tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())
    entry["config"]["colour"] = 1
    (tmp_path / "config.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="colour"):
        methods.load(tmp_path)


def test_constant_has_no_counts() -> None:
    assert counts.of("constant", "centre") == {"": (0, 0.0)}
