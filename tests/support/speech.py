"""Sounds that a voice detector tells apart: a babble of vowels, silence, noise, a tone."""

from __future__ import annotations

from typing import Any

import numpy as np

Sound = np.ndarray[Any, np.dtype[np.float32]]

RATE = 16_000
SYLLABLE = 0.18
"""Seconds."""

FORMANTS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
}
"""Hertz. Mean values of men's American English vowels: Peterson and Barney, 1952."""

BANDWIDTHS = (80, 100, 140)


def babble(vowels: str, pitch: float, seconds: float) -> Sound:
    """A voice that says these vowels over and over, its pitch (Hertz) wavering as voices do.

    A source and filter: pulses of the glottis through three resonances that glide from one vowel
    to the next, with a little breath in them.
    """
    count = int(seconds * RATE)
    time = np.arange(count) / RATE
    wavering = pitch * (1 + 0.12 * np.sin(13.2 * time) + 0.05 * np.sin(31.4 * time))
    pulses = np.diff(np.floor(np.cumsum(wavering / RATE)), prepend=0)
    breath = 0.01 * np.random.default_rng(0).standard_normal(count)
    sound = np.convolve(pulses + breath, np.exp(-np.arange(200) / 12))[:count]
    said = (vowels * count)[: int(seconds / SYLLABLE) + 2]
    for number, bandwidth in enumerate(BANDWIDTHS):
        heights = [FORMANTS[vowel][number] for vowel in said]
        glide = np.interp(time, SYLLABLE * np.arange(len(said)), heights)
        sound = _resonance(sound, glide, bandwidth)
    loudness = np.clip(0.55 + 0.45 * np.sin(2 * np.pi * time / SYLLABLE - 1.2), 0.05, 1)
    sound *= loudness
    return (sound / np.abs(sound).max() / 2).astype(np.float32)


def _resonance(sound: Any, frequency: Any, bandwidth: float) -> Any:
    """A two-pole filter whose frequency (Hertz) is another at each sample."""
    radius = float(np.exp(-np.pi * bandwidth / RATE))
    turns = (2 * radius * np.cos(2 * np.pi * frequency / RATE)).tolist()
    filtered = []
    last = before = 0.0
    for value, turn in zip(sound.tolist(), turns, strict=True):
        last, before = value + turn * last - radius * radius * before, last
        filtered.append(last)
    return np.array(filtered)


def silence(seconds: float) -> Sound:
    return np.zeros(int(seconds * RATE), np.float32)


def noise(seconds: float, loudness: float) -> Sound:
    random = np.random.default_rng(1)
    return (loudness * random.standard_normal(int(seconds * RATE))).astype(np.float32)


def tone(seconds: float) -> Sound:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
