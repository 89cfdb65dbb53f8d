import pytest

from keras_vqvae.backend import backend, base


@pytest.mark.each_backend
def test_a_backend_overrides_only_what_the_contract_documents():
    """A method with a misspelt name would override nothing."""
    own = [name for name in vars(type(backend)) if not name.startswith("_")]
    assert len(own) >= 5
    assert all(name in vars(base.Backend) for name in own)
    assert all(method.__doc__ for name, method in vars(base.Backend).items() if callable(method))
