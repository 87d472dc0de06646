import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mnist_jax import Uncertainty, out_of_distribution_auroc

FIELDS = ("entropy", "mutual_information", "variance")


def by_loops(logits):
    """Each measure of each example, by its definition, in float64."""
    found = {name: [] for name in FIELDS}
    for example in np.float64(logits).transpose(1, 0, 2):
        members = [np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in example]
        mean = sum(members) / len(members)
        entropy, *entropies = (-sum(p * np.log(p) for p in each if p > 0) for each in (mean, *members))
        found["entropy"].append(entropy)
        found["mutual_information"].append(entropy - sum(entropies) / len(members))
        found["variance"].append(sum(((each - mean) ** 2).sum() for each in members) / len(members))
    return found


@pytest.mark.parametrize("scale", [0.1, 3, 1e3])
@pytest.mark.parametrize("jit", [False, True])
def test_the_measures_are_their_definitions(scale, jit):
    logits = (scale * np.random.default_rng(0).normal(size=(4, 30, 10))).astype(np.float32)
    logits[:, 0] = [0, *[-np.inf] * 9]  # certain, and agreed
    logits[0, 1] = [*[-np.inf] * 9, 0]
    found = (jax.jit(Uncertainty.compute) if jit else Uncertainty.compute)(logits)
    for name, expected in by_loops(logits).items():
        array = getattr(found, name)
        assert array.shape == (30,)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=3e-7)
        assert (array >= 0).all()
        assert array[0] == 0


def test_one_member_agrees_with_itself():
    found = Uncertainty.compute(np.random.default_rng(0).normal(size=(1, 20, 10)))
    np.testing.assert_array_equal(found.mutual_information, 0)
    np.testing.assert_array_equal(found.variance, 0)
    assert (found.entropy > 0).all()


@pytest.mark.parametrize("shape", [(30, 10), (0, 30, 10)])
def test_logits_of_another_shape_are_refused(shape):
    message = rf"^logits must be float\[M, N, K\] of at least one member, got shape \[{shape[0]}, "
    with pytest.raises(ValueError, match=message):
        Uncertainty.compute(np.zeros(shape))


@pytest.mark.parametrize("num_values", [2, 5, 10**9])  # many ties, few, none
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_auroc_is_that_of_scikit_learn(num_values, dtype):
    rng = np.random.default_rng(num_values)
    inside, outside = (
        rng.integers(shift, num_values + shift, size).astype(dtype) for shift, size in ((0, 83), (1, 41))
    )
    expected = roc_auc_score(np.repeat([0, 1], [83, 41]), np.concatenate([inside, outside]))
    assert out_of_distribution_auroc(inside, outside) == pytest.approx(expected, abs=1e-12)
    assert out_of_distribution_auroc(outside, inside) == pytest.approx(1 - expected, abs=1e-12)


def test_the_auroc_of_scores_that_separate_and_of_constant_ones():
    assert out_of_distribution_auroc([1, 2], [3, np.inf]) == 1
    assert out_of_distribution_auroc([0, 0, 0], [0, 0]) == 0.5


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], r"scores_in must be numbers \[N\] without NaN, at least one, got shape \[0\]"),
        ([1.0], [[1.0]], r"scores_out must be numbers \[N\] without NaN, at least one, got shape \[1, 1\]"),
        ([1.0], [1.0, np.nan], r"scores_out must be numbers \[N\] without NaN, at least one, got NaN"),
    ],
)
def test_scores_without_an_order_are_refused(inside, outside, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        out_of_distribution_auroc(inside, outside)
