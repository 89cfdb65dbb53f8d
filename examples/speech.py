"""Synthesizes minutes of speech with espeak-ng, as training data for `examples/audio_codec.py`.

    python examples/speech.py speech

It writes a WAV file for each voice and text, `train_*.wav`, and `unheard.wav`, whose voice and text are not in the
training files. `unheard.wav` comes last in alphabetical order, so the codec is tested on it.
"""

import argparse
import pathlib
import shutil
import subprocess

VOICES = ("en-us", "en-gb-scotland+f2", "en-gb-x-rp+m3", "en-029+f4", "en-us+m7", "en-gb-x-gbcwmd+f3")
"""Voices to train on. Each is a language and a male (m) or female (f) variant."""
UNHEARD_VOICE = "en-gb-x-gbclan+f1"
SPEEDS, PITCHES = (140, 165, 190), (35, 50, 65)
TEXTS = (
    "The harbour lay quiet before sunrise. Fishing boats knocked softly against the stones, and somewhere a rope "
    "creaked. She counted seven gulls on the roof of the customs house, then shut the window because of the cold.",
    "Please mix two cups of flour with a pinch of salt, six spoons of sugar and half a stick of butter. Whisk the"
    " eggs in a separate dish, pour everything together, and bake it for thirty five minutes.",
    "Our train will reach Sheffield at sixteen fifty eight. Passengers for Chesterfield should change there and "
    "cross to platform three. We are sorry for the delay, which was caused by a fallen branch near Dronfield.",
    "Why do cats fetch nothing, while dogs fetch anything? Zoologists have argued about this for years. Some say "
    "that it is a question of company; others, rather cheekily, that cats have better things to do.",
    "Measure the height of the shelf twice and cut the board once. If the edges are rough, use fine sandpaper and"
    " a soft cloth. Fix the brackets with four screws each, and check that everything is level.",
    "In autumn the valley fills with fog by evening. The church tower stands above it like the mast of a ship, "
    "and the sheep that graze along the ridge look down on a slow white sea.",
    "He had saved enough for a bicycle, a blue one with five gears. Joyfully he jumped on it, rushed down the "
    "hill, and crashed through the hedge of his astonished neighbour, who was just about to pour the tea.",
    "Version four of the program reads files faster, shows warnings in yellow, and no longer forgets the size of "
    "its window. If you find a fault, send us a short message that says what you expected and what happened.",
)
UNHEARD_TEXT = (
    "A fresh south wind should push the showers away by Thursday, with sunshine for most of us and highs of "
    "twenty two. "
    "Six thick books stood on the physicist's shelf. The first explained why ice floats; the last was a cookery book."
)


def speak(path: pathlib.Path, voice: str, text: str, speed: int, pitch: int) -> None:
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), text], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed: on Debian and Ubuntu, `apt-get install espeak-ng`")
    folder.mkdir(parents=True, exist_ok=True)
    for v, voice in enumerate(VOICES):
        for t, text in enumerate(TEXTS):
            speed, pitch = SPEEDS[(v + t) % len(SPEEDS)], PITCHES[t % len(PITCHES)]
            speak(folder / f"train_{v}_{t}.wav", voice, text, speed, pitch)
    speak(folder / "unheard.wav", UNHEARD_VOICE, UNHEARD_TEXT, 155, 50)


if __name__ == "__main__":
    main()
