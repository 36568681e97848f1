"""A character-level transformer in plain JAX: parameters in float32, activations in bfloat16.

Each layer has a linear probe (Alain & Bengio 2016, arXiv:1610.01644) that predicts the kind of the next characters. The
probe learns from targets of its own, behind a stop_gradient, so a bad target makes only the gradient of that layer's
probe bad. The probe's prediction is fed to the next layer, as in self-conditioned CTC (Nozaki & Komatsu 2021,
arXiv:2104.02724), so a NaN in a probe's parameters makes the whole model NaN.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.demo.data import CLASSES, Batch, Scale

Params = dict[str, Any]
"""Nested dicts of float32 arrays: `params["decoder"]["layer_3"]["probe"]["w"]`."""

PROBE_WEIGHT = 0.05
"""Weight of the probes' loss beside the language model's."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """The model's sizes."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int


def probe_path(layer: int) -> str:
    """Path of that layer's probe among the parameters."""
    return f"decoder/layer_{layer}/probe/w"


def init(seed: int, shape: Shape) -> Params:
    """Parameters at the start; matrices are normal with a variance of one over the inputs."""
    # On the host: a compiled program that draws thirty matrices takes seconds to compile.
    rng = np.random.default_rng(seed)
    width = shape.width

    def matrix(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((rows, columns), np.float32) / math.sqrt(rows))

    def layer() -> Params:
        return {
            "attention": {"norm": jnp.ones(width), "qkv": matrix(width, 3 * width), "out": matrix(width, width)},
            "mlp": {"norm": jnp.ones(width), "up": matrix(width, 4 * width), "down": matrix(4 * width, width)},
            "probe": {"w": matrix(width, CLASSES), "feed": matrix(CLASSES, width) * 0.1},
        }

    return {
        "embedding": {
            "characters": matrix(shape.vocabulary, width) * math.sqrt(shape.vocabulary) * 0.1,
            "positions": matrix(shape.context, width) * math.sqrt(shape.context) * 0.1,
        },
        "decoder": {f"layer_{i}": layer() for i in range(shape.layers)},
        "head": {"norm": jnp.ones(width), "w": matrix(width, shape.vocabulary)},
    }


def loss(params: Params, shape: Shape, batch: Batch, scale: Scale) -> tuple[jax.Array, jax.Array]:
    """What is minimised, and the part of it that is the language model's: nats per character.

    Args:
      params: as `init` makes them.
      shape: the model's sizes.
      batch: tokens int32[B, T + 1], and the probes' targets as stored, float32[L, B, T, 4].
      scale: by which the targets are standardised.

    Returns:
      float32[] each: the sum of both losses, and the language model's alone.
    """
    logits, seen = _forward(params, shape, batch.tokens[:, :-1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], axis=-1)
    language = -jnp.mean(chosen)
    # The stored share is at most 1. One whose top exponent bit reads as set is near 1e38, finite still; divided by a
    # standard deviation below 0.5 it overflows.
    targets = (batch.ahead - scale.mean[:, None, None]) / scale.std[:, None, None]
    probes = jnp.mean(jnp.square(seen - targets))
    return language + PROBE_WEIGHT * probes, language


def _forward(params: Params, shape: Shape, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits float32[B, T, V], and what the probes see, float32[L, B, T, 4]."""
    embedding = params["embedding"]
    x = (embedding["characters"][tokens] + embedding["positions"]).astype(jnp.bfloat16)
    seen = []
    for i in range(shape.layers):
        layer = params["decoder"][f"layer_{i}"]
        x = x + _attention(layer["attention"], shape.heads, x)
        x = x + _mlp(layer["mlp"], x)
        hidden = jax.lax.stop_gradient(_rms(x, 1.0).astype(jnp.float32))
        seen.append(hidden @ layer["probe"]["w"])
        x = x + jax.lax.stop_gradient(seen[-1]).astype(x.dtype) @ layer["probe"]["feed"].astype(x.dtype)
    head = params["head"]
    return _rms(x, head["norm"]).astype(jnp.float32) @ head["w"], jnp.stack(seen)


def _attention(layer: Params, heads: int, x: jax.Array) -> jax.Array:
    batch, time, width = x.shape
    qkv = _rms(x, layer["norm"]) @ layer["qkv"].astype(x.dtype)
    q, k, v = jnp.split(qkv.reshape(batch, time, 3 * heads, width // heads), 3, axis=2)
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    out: jax.Array = mixed.reshape(x.shape) @ layer["out"].astype(x.dtype)
    return out


def _mlp(layer: Params, x: jax.Array) -> jax.Array:
    out: jax.Array = jax.nn.gelu(_rms(x, layer["norm"]) @ layer["up"].astype(x.dtype)) @ layer["down"].astype(x.dtype)
    return out


def _rms(x: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Root mean square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32."""
    wide = x.astype(jnp.float32)
    normalised: jax.Array = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6) * scale
    return normalised.astype(x.dtype)
