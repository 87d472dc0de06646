"""XLA computes what NumPy does, on both sides of 384 KiB, where jaxlib 0.10.2 did not (jax-ml/jax#39103)."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

OLD = importlib.metadata.version("jaxlib").startswith("0.10.")
# Rows of 3 float32: 384 KiB are 32,768 of them.
ROWS = (1_000, 32_768, 32_769, 100_003)


@pytest.fixture(params=ROWS)
def rows(request):
    return np.random.default_rng(0).normal(size=(request.param, 3)).astype(np.float32)


def check(function, x, expected):
    """The wrong results were off by 0.8 %."""
    np.testing.assert_allclose(jax.jit(function)(x), expected, rtol=1e-4, atol=1e-5)


def test_squares_of_mapped_products(rows):
    """The reproducer of the issue, and the same with other numbers; each row by itself, since sums hide a wrong one."""
    counted = np.zeros_like(rows)
    counted[:, 0] = np.arange(len(rows))
    matrix = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    for x, a in ((counted, np.eye(3, dtype=np.float32)), (rows, matrix)):
        expected = ((x.astype(np.float64) @ a.astype(np.float64).T) ** 2).sum(axis=1)
        check(jax.vmap(lambda row, a=a: jnp.sum((a @ row) ** 2)), x, expected)


def test_sums_of_mapped_products(rows):
    matrix = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    expected = ((rows.astype(np.float64) @ matrix.astype(np.float64).T) ** 2).sum()
    check(lambda rows: jnp.sum(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)), rows, expected)


def test_mapped_matrix_products(rows):
    matrix = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    check(jax.vmap(lambda row: matrix @ row), rows, rows.astype(np.float64) @ matrix.astype(np.float64).T)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_reductions(rows, axis):
    check(lambda x: jnp.sum(x * x, axis=axis), rows, (rows.astype(np.float64) ** 2).sum(axis=axis))
    check(lambda x: jnp.max(x, axis=axis), rows, rows.max(axis=axis))


def test_norms_of_each_row_and_of_all(rows):
    check(jax.vmap(jnp.linalg.norm), rows, np.linalg.norm(rows.astype(np.float64), axis=1))
    check(lambda x: jnp.sqrt(jnp.sum(jnp.square(x))), rows, np.linalg.norm(rows.astype(np.float64)))


def test_moments_of_a_batch_norm(rows):
    rows = rows + np.float32(2)
    exact = rows.astype(np.float64)
    check(lambda x: jnp.mean(x, axis=0), rows, exact.mean(axis=0))
    check(lambda x: jnp.mean(jnp.square(x), axis=0) - jnp.square(jnp.mean(x, axis=0)), rows, exact.var(axis=0))


@pytest.mark.xfail(OLD, strict=True, reason="jaxlib 0.10.1, for Python 3.11: 7,230 of these sums are wrong")
def test_sums_of_mapped_3x3_products():
    """Nothing in this package computes such a sum."""
    rows = np.random.default_rng(0).normal(size=(40_000, 3)).astype(np.float32)
    matrix = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    expected = (rows.astype(np.float64) @ matrix.T.astype(np.float64)).sum(axis=1)
    check(jax.vmap(lambda row: jnp.sum(matrix @ row)), rows, expected)
