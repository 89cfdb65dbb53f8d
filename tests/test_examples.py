"""Runs the examples, each on the backend of the tests."""

import base64
import gzip
import pathlib
import re
import runpy
import sys

import audio_codec
import forecast
import hierarchy
import images
import keras
import numpy as np
import packed_codes
import photographs
import pytest
import semantic_ids
import sounds
from helpers import numpy
from scipy.io import wavfile

import keras_vqvae

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a script in this process, because a new process would spend most of its time on imports."""

    load = images._load
    few = 160 if keras.backend.backend() == "jax" else None

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        # Few images: without XLA's optimizations, convolutions of all of them would take most of the time on JAX.
        monkeypatch.setattr(images, "_load", lambda *where: [(x[:few], labels[:few]) for x, labels in load(*where)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        return capfd.readouterr().out

    return run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Writes small IDX files, half of them gzipped."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for name, count in (("train-labels-idx1-ubyte", 16), ("t10k-labels-idx1-ubyte", 8)):
        (folder / name).write_bytes(bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes() + bytes(range(count)))
    for name, count in (("train-images-idx3-ubyte", 16), ("t10k-images-idx3-ubyte", 8)):
        content = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        content += rng.integers(256, size=(count, 28, 28), dtype="u1").tobytes()
        if count == 16:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def test_digits_are_between_0_and_1():
    train, test = images.load("digits")
    assert train.shape == (1500, 8, 8, 1)
    assert test.shape == (297, 8, 8, 1)
    assert train.dtype == "float32"
    assert train.min() == 0
    assert train.max() == 1


def test_idx_files_are_read(data_dir):
    train, test = images.load("fashion_mnist", data_dir)
    assert train.shape == (16, 28, 28, 1)
    assert test.shape == (8, 28, 28, 1)
    expected = np.random.default_rng(0).integers(256, size=(16, 28, 28), dtype="u1")
    np.testing.assert_allclose(train[..., 0], expected / np.float32(255))
    train, test = images.load_labels("fashion_mnist", data_dir)
    np.testing.assert_array_equal(train, np.arange(16))
    np.testing.assert_array_equal(test, np.arange(8))


def test_unknown_data_sets_are_named_in_errors():
    with pytest.raises(ValueError, match="Received: dataset='letters'"):
        images.load("letters")


@pytest.mark.slow
def test_the_demo_trains_and_draws(run, tmp_path):
    small = "--photograph-epochs", 1, "--stages", 2, "--stage-codes", 16, "--crops", 32
    printed = run("demo.py", *small, "--epochs", 1, "--prior-epochs", 1, "--output", tmp_path)
    assert "val_perplexity" in printed
    assert re.findall(r"(\d) of 2 stages: (0\.\d+) bits/pixel", printed) == [("1", "0.062"), ("2", "0.125")]
    assert "96 without it" in printed
    page = (tmp_path / "index.html").read_text()
    headings = re.findall("<h2>(.*)</h2>", page)
    assert headings[:4] == ["A photograph at several rates", "New images", "Reconstructions", "Codes"]
    for heading, picture in zip(headings, re.findall('src="data:image/png;base64,([^"]*)"', page), strict=True):
        assert base64.b64decode(picture).startswith(b"\x89PNG")
        assert (tmp_path / f"{heading.lower().replace(' ', '_')}.png").stat().st_size > 1000
    model, prior = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("model", "prior"))
    assert model.sample(prior, 2, labels=7, verbose=0).shape == (2, 8, 8, 1)


def test_the_training_photographs_exclude_the_test_part():
    unseen, seen = photographs.load()
    for y, x in ((0, 0), (100, 200), (344, 248)):
        patch = unseen[y : y + 8, x : x + 8]
        for photograph in seen:
            rows = np.lib.stride_tricks.sliding_window_view(photograph[..., 0], (8, 8))
            assert not np.any(np.all(rows == patch[..., 0], axis=(-2, -1)))


def test_crops_are_parts_of_photographs():
    """Each pixel's value is its position."""
    photograph = np.stack(np.meshgrid(np.arange(70), np.arange(90), np.arange(1)), axis=-1)[:, :, 0]
    crops = photographs.crop([photograph, photograph], 8, seed=0)
    assert crops.shape == (8, 64, 64, 3)
    np.testing.assert_array_equal(np.diff(crops[..., 1], axis=1), 1)
    steps = np.diff(crops[..., 0], axis=2)
    assert set(steps[:, 0, 0]) == {-1, 1}
    np.testing.assert_array_equal(steps, np.broadcast_to(steps[:, :1, :1], steps.shape))


def test_the_model_of_photographs_starts_at_principal_components(rng):
    """Patches that lie in few directions are reconstructed exactly."""
    directions = rng.normal(size=(photographs.DIM, 8, 8, 3))
    patches = np.tensordot(rng.normal(size=(4, 8, 8, photographs.DIM)), directions, axes=1)
    crops = patches.swapaxes(2, 3).reshape(4, 64, 64, 3).astype("float32")
    model = photographs.build(photographs.principal_components(crops), num_embeddings=8, num_stages=2, seed=0)
    decoded = numpy(model.decoder(model.encoder(crops)))
    np.testing.assert_allclose(decoded, crops, atol=1e-4 * np.abs(crops).max())


def test_a_jpeg_fits_into_the_given_number_of_bytes(rng):
    unseen = photographs.load()[0][:64, :64]
    decoded, size = photographs.jpeg(unseen, 800)
    assert 0 < size <= 800
    assert photographs.signal_to_noise(unseen, decoded) > 15
    # No JPEG is this small.
    assert photographs.jpeg(unseen, 1)[1] > 1
    assert photographs.signal_to_noise(np.zeros(4), np.full(4, 0.1)) == pytest.approx(20)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="jax2onnx fixes the batch size")
# These warnings come from the exporters.
@pytest.mark.filterwarnings("ignore")
def test_exported_codes_need_no_keras(run, tmp_path):
    printed = run("export.py", "--epochs", 2, "--output", tmp_path)
    in_keras, in_onnxruntime = re.findall(r"mean squared error in .*: (.*)", printed)
    assert abs(float(in_keras) - float(in_onnxruntime)) < 2e-5
    assert "4 int32 codes each" in printed


def test_the_functional_example_runs(run, data_dir):
    printed = run("functional.py", "--epochs", 1, "--data-dir", data_dir)
    assert "codes used" in printed


def test_semantic_ids_are_unique_and_pure(run, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 75)
    items = (8 * np.eye(4, 6)[labels] + generator.normal(size=(300, 6))).astype("float32")
    items[[3, 200], 1] = np.nan, np.inf
    np.save(tmp_path / "items.npy", items)
    np.save(tmp_path / "labels.npy", labels)
    files = "--embeddings", tmp_path / "items.npy", "--labels", tmp_path / "labels.npy"
    printed = run("semantic_ids.py", *files, "--codes", 4, "--stages", 2, "--output", tmp_path)
    assert "not finite: 2" in printed
    assert "with it: 100.0%" in printed
    assert "1 shared codes: 100.0%" in printed
    rows = np.loadtxt(tmp_path / "ids.csv", int, delimiter=",", skiprows=1)
    assert rows.shape == (298, 4)
    assert len(np.unique(rows[:, 1:], axis=0)) == 298
    np.testing.assert_array_equal(rows[:, 0], np.delete(np.arange(300), [3, 200]))
    assert (tmp_path / "purity.png").stat().st_size > 1000


@pytest.mark.parametrize("epochs", [0, 20])
def test_semantic_ids_of_any_scale_explain_the_variance_and_are_reassigned(run, tmp_path, epochs):
    generator = np.random.default_rng(0)
    clusters = 8 * generator.normal(size=(4, 6))[generator.integers(0, 4, 400)]
    np.save(tmp_path / "items.npy", 1e-3 * (clusters + generator.normal(size=(400, 6))) + 5)
    options = "--codes", 16, "--stages", 3, "--epochs", epochs, "--latent-dim", 4, "--output", tmp_path
    printed = run("semantic_ids.py", "--embeddings", tmp_path / "items.npy", "--reassign", *options)
    explained = [float(x) for x in re.findall(r"used, (.*)% of the variance", printed)]
    assert explained[0] < explained[1]
    assert min(explained[1:]) > 90
    shared, after = (int(x) for x in re.findall(r"(?:share their codes|reassignment): (\d+)", printed))
    assert after < shared
    assert float(re.findall(r"reassignment: \d+, (.*)% of", printed)[0]) > explained[-1] - 2


def test_a_reassignment_has_the_least_cost():
    """Of two items with the same code, the one that is closer to its second choice moves. Other prefixes stay."""
    codebooks = [[[0.0], [100.0]], [[-1.0], [1.0], [4.0]]]
    residual = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(3, ema_decay=0.9), 2)
    codebooks[0].append([1000.0])
    model = semantic_ids.build(residual, None, np.zeros(1), 1.0)
    for stage, codebook in zip(residual.quantizers, codebooks, strict=True):
        stage.set_codebook(np.array(codebook, "float32"))
    items, numbers = np.array([[1.1], [99.0], [2.0], [np.nan], [-1.0]], "float32"), np.array([0, 1, 2, 4])
    codes = semantic_ids.encode(model, items, numbers)
    np.testing.assert_array_equal(codes, [[0, 1], [1, 0], [0, 1], [0, 0]])
    assert semantic_ids.shared(codes) == 2
    found = semantic_ids.reassign(model, items, numbers, codes)
    np.testing.assert_array_equal(found, [[0, 1], [1, 0], [0, 2], [0, 0]])
    # Four items cannot be distinguished by three codes.
    items, numbers = np.array([[1.0], [1.0], [1.0], [1.0]], "float32"), np.arange(4)
    codes = semantic_ids.encode(model, items, numbers)
    np.testing.assert_array_equal(semantic_ids.reassign(model, items, numbers, codes), codes)


def test_the_multi_scale_example_adds_codes_scale_by_scale(run, tmp_path):
    printed = run("multi_scale.py", "--epochs", 1, "--codes", 8, "--output", tmp_path)
    assert re.findall(r"up to (\d) x \d: (\d+) codes", printed) == [("1", "1"), ("2", "5"), ("3", "14"), ("4", "30")]
    assert (tmp_path / "scales.png").stat().st_size > 1000


@pytest.mark.parametrize("num_embeddings", [2, 8, 200, 1024])
def test_indices_are_packed_into_their_bits(rng, num_embeddings):
    """Compares the bits with Python's own base-2 integers."""
    codes = rng.integers(num_embeddings, size=(5, 3), dtype="int32")
    packed = packed_codes.Packed(codes, samples=19, rate=8000, loudness=0.25)
    data = packed_codes.pack(packed, num_embeddings)
    bits = (num_embeddings - 1).bit_length()
    assert len(data) == packed_codes.HEADER.size + -(-15 * bits // 8)
    digits = "".join(f"{code:0{bits}b}" for code in codes.ravel())
    digits += "0" * (-len(digits) % 8)
    assert data[packed_codes.HEADER.size :] == int(digits, 2).to_bytes(len(digits) // 8, "big")
    # At 4 samples per vector, 19 samples have 5 vectors.
    found = packed_codes.unpack(data, stride=4)
    np.testing.assert_array_equal(found.codes, codes)
    assert found[1:] == packed[1:]
    for other in (data[:-1], data + b"0", b"RIFF" + data[4:], data[:9]):
        with pytest.raises(ValueError, match="Received: .* bytes"):
            packed_codes.unpack(other, stride=4)


def test_distances_of_sounds_are_in_decibels(rng):
    noise = rng.normal(size=32_000)
    # Half the amplitude is 6 dB less everywhere.
    for distance in (sounds.spectral_distance(noise, noise / 2), sounds.mel_distance(noise, noise / 2, 16_000)):
        assert distance == pytest.approx(20 * np.log10(2), rel=1e-2)
    assert sounds.powers(noise).mean() == pytest.approx(1, rel=0.05)
    other = rng.normal(size=32_000)
    other -= noise * (noise @ other) / (noise @ noise)
    other *= np.sqrt((noise @ noise) / (other @ other)) / 10
    assert sounds.signal_to_distortion(noise, 3 * (noise + other)) == pytest.approx(20)


def test_a_tone_falls_into_the_mel_band_of_its_frequency():
    """Mel is 2595 log10(1 + f / 700), in which all bands have the same width."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    energies = (sounds.mel_filters(16_000) @ sounds.powers(tone)).mean(axis=1)
    position = np.log10(1 + 1000 / 700) / np.log10(1 + 8000 / 700) * (sounds.BANDS + 1) - 1
    assert abs(energies.argmax() - position) < 1


def test_sound_is_sent_in_any_number_of_stages(run, tmp_path, capfd):
    time = np.arange(4000) / 8000
    for name, frequency in (("a", 300), ("b", 500), ("c", 400)):
        tone = (8000 * np.sin(2 * np.pi * frequency * time)).astype("int16")
        wavfile.write(tmp_path / f"{name}.wav", 8000, np.stack([tone, 0 * tone], axis=1) if name == "a" else tone)
    with pytest.raises(SystemExit):
        run("audio_codec.py", "--folder", tmp_path / "nothing")
    assert "Received: 0 in" in capfd.readouterr().err
    out = tmp_path / "out"
    options = "--codes", 8, "--stages", 2, "--window", 1024, "--epochs", 1, "--adversarial", 0.1
    printed = run("audio_codec.py", "--folder", tmp_path, *options, "--output", out)
    # Twice the sample rate, 64 samples per vector, 3 bits per stage.
    assert "c.wav: 0.50 s, 125 x 2 indices" in printed
    assert re.findall(r"\| (\d) \| (\d\.\d) \| (\d+) \|", printed) == [("1", "0.8", "47"), ("2", "1.5", "94")]
    rate, sound = wavfile.read(out / "original.wav")
    assert (rate, sound.shape) == (16_000, (8000,))
    peak = np.abs(np.fft.rfft(sound * np.hanning(8000))).argmax() * rate / 8000
    assert peak == 400
    assert np.abs(sound).max() == pytest.approx(8000 / 32767, rel=0.05)
    decoded = wavfile.read(out / "2_stages.wav")[1]
    assert decoded.shape == (8000,)
    alike, difference = re.findall(r"20 ms: (.*)% of the indices are equal, .* by at most (\S*)", printed)[0]
    assert float(alike) > 99
    assert float(difference) < 1e-3
    # Decoding needs only the file and the saved codec.
    packed = packed_codes.unpack((out / "2_stages.vqs").read_bytes(), stride=64)
    again = audio_codec.decode(keras.models.load_model(out / "codec.keras"), packed)
    np.testing.assert_allclose(np.clip(again, -1, 1), decoded, atol=1e-5)
    # Sounds can have any length.
    wavfile.write(tmp_path / "short.wav", 16_000, sound[:777])
    run("audio_codec.py", "--codec", out / "codec.keras", "--file", tmp_path / "short.wav", "--output", tmp_path)
    assert wavfile.read(tmp_path / "2_stages.wav")[1].shape == (777,)


def test_windows_are_centered_on_the_mean_of_their_known_part():
    series = np.arange(40.0)
    parts = forecast.windows(series, block=5, hop=7)
    assert parts.shape == (3, 4, 5)
    np.testing.assert_allclose(parts[:, :-1].mean(axis=(1, 2)), 0, atol=1e-12)
    # The known values are 7 to 21, whose mean is 14.
    np.testing.assert_allclose(parts[1].ravel(), np.arange(7, 27) - 14)


def test_the_ranked_probability_score_matches_its_definition(rng):
    draws, truth = rng.normal(size=(6, 4, 3)), rng.normal(size=(4, 3))
    among = np.abs(draws[:, None] - draws[None]).mean(axis=(0, 1))
    expected = np.mean(np.abs(draws - truth).mean(axis=0) - among / 2)
    assert forecast.ranked_probability_score(draws, truth) == pytest.approx(expected)
    assert forecast.ranked_probability_score(draws[:1], truth) == pytest.approx(np.abs(draws[0] - truth).mean())


def test_the_continuation_of_the_nearest_window_is_found(rng):
    train = rng.normal(size=(9, 4, 5))
    test = train[[7, 2]] + 1e-3
    np.testing.assert_array_equal(forecast.nearest_continuation(train, test), train[[7, 2], -1])


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="one backend is enough: its parts are tested on each backend"
)
def test_the_forecast_example_continues_a_sine(run, tmp_path):
    np.savetxt(tmp_path / "series.txt", np.sin(np.arange(2000) / 4))
    sizes = "--decimate", 2, "--block", 16, "--codes", 8, "--epochs", 1, "--prior-epochs", 1, "--draws", 3
    printed = run("forecast.py", "--file", tmp_path / "series.txt", *sizes, "--output", tmp_path / "forecast.png")
    scores = {name: float(score) for name, score in re.findall(r"(.*): score (\d\.\d{3})", printed)}
    assert len(scores) == 5
    # A sine continues as it did before.
    assert scores["what followed the most similar training window"] < 0.1 < scores["the last value, repeated"]
    assert (tmp_path / "forecast.png").stat().st_size > 1000


def test_the_models_of_a_hierarchy_share_their_layers(rng):
    model, encoder, decoder = hierarchy.build(8, num_embeddings=16, embedding_dim=4, seed=0)
    x = rng.random((5, 8, 8, 1), "float32")
    outputs, (coarse, fine) = model(x), encoder(x)
    both, alone = (numpy(outputs[name]) for name in ("both", "coarse"))
    np.testing.assert_allclose(numpy(decoder([coarse, fine])), both, atol=1e-6)
    # The output `"coarse"` depends only on the coarse codes.
    fine_quantizer = model.get_layer("fine")
    fine_quantizer.set_codebook(fine_quantizer.codebook + 1.0)
    changed = model(x)
    np.testing.assert_array_equal(numpy(changed["coarse"]), alone)
    assert np.abs(numpy(changed["both"]) - both).max() > 1e-3


def test_coarse_and_fine_codes_are_joined_into_one_sequence(rng):
    codes = rng.integers(7, size=(3, 2, 2)), rng.integers(7, size=(3, 4, 4))
    sequence = hierarchy.OneSequence((2, 2), (4, 4), num_embeddings=7)
    joined = sequence.join(*codes)
    np.testing.assert_array_equal(joined[1, :5], [*codes[0][1].ravel(), codes[1][1, 0, 0] + 7])
    for part, expected in zip(sequence.split(joined), codes, strict=True):
        np.testing.assert_array_equal(part, expected)
    # Codes of the other grid are clipped.
    np.testing.assert_array_equal(sequence.split(np.full((1, 20), 13))[0], np.full((1, 2, 2), 6))
    np.testing.assert_array_equal(sequence.split(np.zeros((1, 20), int))[1], np.zeros((1, 4, 4)))


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="one backend is enough: its parts are tested on each backend"
)
def test_a_hierarchy_trains_and_draws(run, tmp_path):
    sizes = "--codes", 16, "--embedding-dim", 4, "--epochs", 1, "--prior-epochs", 1
    printed = run("hierarchy.py", "--dataset", "digits", *sizes, "--output", tmp_path)
    assert "5 codes" in printed
    headings = re.findall("<h2>(.*)</h2>", (tmp_path / "index.html").read_text())
    assert headings == ["New images", "Levels", "Details"]
