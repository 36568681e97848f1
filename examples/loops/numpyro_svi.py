"""NumPyro: `svi.run` hides its loop and returns the last state, whose one reading has all counts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import optwrap

STEPS = 40


def model(data: jax.Array) -> None:
    """The mean of a normal distribution, from some of the data in each step; one value of the data is NaN."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(data), subsample_size=4) as rows:
        numpyro.sample("x", dist.Normal(mean, 1.0, validate_args=False), obs=data[rows])


def main() -> Any:
    """Infer the mean; returns what `svi.run` does."""
    data = jnp.asarray(np.random.default_rng(0).normal(3.0, 1.0, 16).astype(np.float32)).at[0].set(jnp.nan)
    # [watched]
    with optwrap.Monitor(run="numpyro-svi", counts_from="zero") as monitor:  # this process begins the training
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor)
        svi = SVI(model, AutoNormal(model), tx, Trace_ELBO())
        result = svi.run(jax.random.key(0), STEPS, data, progress_bar=False)
        monitor.observe(optwrap.reading(result.state))
    # [watched]
    return result


if __name__ == "__main__":
    main()
