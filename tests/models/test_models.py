"""All models alike: a model without weights has the shapes of one with weights."""

import subprocess
import sys

import pytest

from recblr.models import MODELS, create_model, empty_model

SIZES = {"items": 30, "users": 20, "max_length": 10}


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_model_has_the_shapes_of_a_model(name: str) -> None:
    config = MODELS[name][1](dim=8)
    expected = create_model(name, config, **SIZES).state_dict()
    found = empty_model(name, config, **SIZES).state_dict()
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in found.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()
    }


def test_an_empty_model_does_not_import_the_compiler_of_pytorch() -> None:
    """The import takes two seconds of each command that loads a model."""
    code = (
        "import sys; from recblr.models import MODELS, empty_model\n"
        f"for name in MODELS: empty_model(name, MODELS[name][1](), **{SIZES})\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
