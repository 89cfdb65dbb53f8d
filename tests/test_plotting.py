import keras
import numpy as np
import pytest

import keras_vqvae
from keras_vqvae import plotting


@pytest.fixture(params=[(8, 8), (8, 8, 1), (8, 8, 3)])
def images(request, rng):
    return rng.random((5, *request.param))


def pictures(figure):
    return [axis.images[0].get_array() for axis in figure.axes]


def test_reconstructions_are_drawn_below_the_originals(images):
    worse = np.clip(images + 0.5, 0, 2)
    figure = plotting.plot_reconstructions(images, worse, max_images=3)
    drawn = pictures(figure)
    assert len(drawn) == 6
    for i in range(3):
        np.testing.assert_allclose(np.squeeze(drawn[i]), np.squeeze(images[i]))
        np.testing.assert_allclose(np.squeeze(drawn[3 + i]), np.squeeze(np.clip(worse[i], 0, 1)))
    error = np.square(images - np.clip(worse, 0, 1)).mean()
    assert f"{error:.4f} on 5 images" in figure.get_suptitle()


def test_named_reconstructions_are_drawn_in_rows(images):
    figure = plotting.plot_reconstructions(images, {"coarse": 0 * images, "fine": images}, max_images=3)
    drawn = pictures(figure)
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["original", "coarse", "fine"]
    np.testing.assert_array_equal(np.squeeze(drawn[3]), 0)
    np.testing.assert_allclose(np.squeeze(drawn[8]), np.squeeze(images[2]))
    assert f"{np.square(images).mean():.4f}, 0.0000 on" in figure.get_suptitle()
    with pytest.raises(ValueError, match="reconstructions.*Received"):
        plotting.plot_reconstructions(images, {"fine": images, "short": images[:2]})


def test_samples_of_each_class_are_drawn_in_a_row(images):
    figure = plotting.plot_samples({"0": images, "1": images - 0.5}, max_images=4)
    drawn = pictures(figure)
    assert len(drawn) == 8
    assert [axis.get_ylabel() for axis in figure.axes[::4]] == ["0", "1"]
    np.testing.assert_allclose(np.squeeze(drawn[5]), np.squeeze(np.clip(images[1] - 0.5, 0, 1)))
    assert figure.get_suptitle() == "10 new images"
    assert np.max(pictures(plotting.plot_samples(images + 0.5))) == 1
    unnamed = plotting.plot_samples(images)
    assert len(pictures(unnamed)) == 5
    assert unnamed.axes[0].get_ylabel() == "samples"
    if images.shape[-1] != 3:
        assert {(axis.images[0].get_cmap().name, axis.images[0].get_clim()) for axis in unnamed.axes} == {
            ("gray", (0, 1))
        }
    with pytest.raises(ValueError, match="images.*Received: images of shape"):
        plotting.plot_samples(np.zeros((5, 64)))


def test_code_maps_are_drawn_below_their_images(images, rng):
    codes = rng.integers(16, size=(5, 4, 2))
    figure = plotting.plot_code_maps(images, codes, num_embeddings=16, max_images=9)
    drawn = pictures(figure)
    assert len(drawn) == 10
    np.testing.assert_array_equal(drawn[5], codes[0])
    assert {axis.images[0].get_clim() for axis in figure.axes[5:]} == {(0, 15)}


def test_code_usage_is_counted():
    figure = plotting.plot_code_use(np.array([[3, 3], [3, 0]]), num_embeddings=4)
    (steps,) = figure.axes[0].patches
    np.testing.assert_allclose(steps.get_data().values, [0.75, 0.25, 0, 0])
    # exp of the entropy of 3 / 4 and 1 / 4 is 1.75.
    assert figure.axes[0].get_title() == "Codebook usage: 2 of 4 codes, perplexity 2"


@pytest.mark.parametrize("cells", [2, (1, 3)])
def test_code_usage_is_counted_per_codebook(cells):
    codes = (
        np.array([[0, 1], [0, 2], [0, 3]]) if cells == 2 else np.array([[0, 1, 2, 3], [0, 3, -1, -1], [0, 2, 1, -1]])
    )
    figure = plotting.plot_code_use(codes, 4, cells)
    first, second = figure.axes[0].patches
    np.testing.assert_allclose(first.get_data().values, [1, 0, 0, 0])
    assert second.get_data().values[3] == 0
    assert np.count_nonzero(second.get_data().values) == 3
    lines = "Usage of 2 codebooks: 2 of 4 codes on average, at least 1\nPerplexity 2 on average, at least 1"
    assert figure.axes[0].get_title() == lines


def test_a_code_atlas_starts_with_the_most_used_codes(images):
    figure = plotting.plot_code_atlas(2 * images, counts=[3, 9, 0, 5, 4], max_images=4)
    drawn = [np.squeeze(axis.images[0].get_array()) for axis in figure.axes if axis.images]
    assert len(drawn) == 4
    for image, code in zip(drawn, [1, 3, 4, 0], strict=True):
        np.testing.assert_allclose(image, np.squeeze(np.clip(2 * images[code], 0, 1)))
    assert "4 of 5, most used first" in figure.get_suptitle()
    first = next(axis for axis in plotting.plot_code_atlas(images).axes if axis.images)
    np.testing.assert_allclose(np.squeeze(first.images[0].get_array()), np.squeeze(images[0]))


def test_training_and_validation_are_drawn_together():
    figure = plotting.plot_training({"loss": [3, 2], "perplexity": [1, 4], "val_loss": [4, 3]})
    assert [axis.get_title() for axis in figure.axes] == ["loss", "perplexity"]
    loss, validation = figure.axes[0].lines
    np.testing.assert_array_equal(loss.get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(validation.get_xydata(), [[1, 4], [2, 3]])
    assert len(figure.axes[1].lines) == 1


def test_figures_can_be_written(images, tmp_path):
    plotting.plot_reconstructions(images, images).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_wrong_shapes_are_named_in_errors(images):
    with pytest.raises(ValueError, match="Received: images of shape"):
        plotting.plot_reconstructions(images, images[:2])
    with pytest.raises(ValueError, match="Received: codes of shape"):
        plotting.plot_code_maps(images, np.zeros(5, int), 4)
    with pytest.raises(ValueError, match="Received: counts of shape"):
        plotting.plot_code_atlas(images, counts=[1, 2])
    with pytest.raises(ValueError, match=r"Received: history with the keys \['val_loss'\]"):
        plotting.plot_training({"val_loss": [1]})
    with pytest.raises(ValueError, match="Received: max_images=0"):
        plotting.plot_reconstructions(images, images, max_images=0)


def test_plotting_is_an_attribute_of_the_package(monkeypatch):
    monkeypatch.delattr(keras_vqvae, "plotting")
    assert keras_vqvae.plotting is plotting
    with pytest.raises(AttributeError, match="module 'keras_vqvae' has no attribute 'plots'"):
        keras_vqvae.plots  # noqa: B018


def test_a_history_object_is_refused():
    history = keras.callbacks.History()
    with pytest.raises(ValueError, match=r"as `fit\(\.\.\.\)\.history` is\. Received: history=<.*History"):
        plotting.plot_training(history)
