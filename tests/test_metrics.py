import json

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_vqvae
from keras_vqvae import metrics

METRICS = [keras_vqvae.CodebookPerplexity, keras_vqvae.CodebookUsage]


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=3))
def test_results_over_batches_equal_those_of_all_data_at_once(batches):
    perplexity, usage = (metric(num_embeddings=7) for metric in METRICS)
    for batch in batches:
        perplexity.update_state(np.array(batch, "int32"))
        usage.update_state(np.array(batch, "int32"))
    everything = np.concatenate(batches)
    np.testing.assert_allclose(perplexity.result(), oracle.perplexity(everything, 7), rtol=1e-5)
    np.testing.assert_allclose(usage.result(), len(set(everything.tolist())) / 7, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("cells", [3, (1, 4, 2)])
def test_reduction_gives_the_mean_or_the_worst_codebook(metric, cells, rng):
    ids = np.arange(3) if cells == 3 else np.repeat(np.arange(3), cells)
    indices = rng.integers(-1, 5, size=(4, len(ids)))
    each = []
    for book in range(3):
        one = metric(5)
        one.update_state(indices[:, ids == book])
        each.append(float(one.result()))
    for reduction, expected in (("mean", np.mean(each)), ("min", min(each))):
        several = metric(5, num_codebooks=cells, reduction=reduction)
        several.update_state(indices)
        np.testing.assert_allclose(several.result(), expected, rtol=1e-6)
        assert several.name == ("min_" if reduction == "min" else "") + metric(5).name
        again = metric.from_config(json.loads(json.dumps(several.get_config())))
        again.update_state(indices)
        assert float(again.result()) == float(several.result())


def test_the_summary_reports_the_mean_and_the_worst_codebook():
    counts = np.array([[[4, 4, 0, 0], [8, 0, 0, 0]], [[2, 2, 2, 2], [0, 0, 0, 0]]])
    found = {name: float(value) for name, value in metrics.summary(counts).items()}
    expected = {"perplexity": 1.75, "codebook_usage": 7 / 16, "min_perplexity": 0, "min_codebook_usage": 0}
    # The mean of 1, 0, 2 and 0 bits.
    assert found == pytest.approx(expected | {"bits_per_index": 0.75})
    for alone in counts[0, 0], counts[0, :1]:
        assert sorted(metrics.summary(alone)) == ["bits_per_index", "codebook_usage", "perplexity"]
    # Four samples have 8 indices of 1 bit, 8 of 0 bits and 8 of 2 bits.
    assert float(metrics.summary(counts, samples=4)["bits_per_sample"]) == pytest.approx(6.0)


@pytest.mark.parametrize("metric", METRICS)
def test_negative_indices_are_ignored(metric):
    one, other = metric(5), metric(5)
    one.update_state(np.array([[0, 1], [1, 4]]))
    other.update_state(np.array([-1, 0, 1, -1, 1, 4, -7]))
    assert float(one.result()) == float(other.result())


@pytest.mark.parametrize("metric", METRICS)
def test_results_are_zero_before_any_data_and_after_a_reset(metric):
    metric = metric(5)
    assert float(metric.result()) == 0
    metric.update_state(np.array([1, 2]))
    assert float(metric.result()) > 0
    metric.reset_state()
    assert float(metric.result()) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_the_config_survives_a_round_trip(metric):
    config = metric(5, name="mine", dtype="float16").get_config()
    assert (config["num_embeddings"], config["dtype"]) == (5, "float16")
    assert metric.from_config(config).get_config() == config


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_arguments_are_named_in_errors(metric):
    with pytest.raises(ValueError, match="Received: num_embeddings=0"):
        metric(0)
    for wrong in (0, (), (1, 0), "12"):
        with pytest.raises(ValueError, match=r"Received: num_codebooks(\[1\])?="):
            metric(5, num_codebooks=wrong)
    with pytest.raises(ValueError, match="Received: reduction='max'"):
        metric(5, reduction="max")


def test_trap_float32_counts_stop_growing_at_2_to_the_24():
    metric = keras_vqvae.CodebookPerplexity(2)
    metric.counts.assign(np.array([[2**24, 2**24]], "int32"))
    metric.update_state(np.array([0, 0, 0], "int32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(metric.counts), [[2**24 + 3, 2**24]])
