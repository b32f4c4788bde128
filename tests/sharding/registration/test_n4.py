"""The field of N4 is that of ITK's general implementation, and its splines are splines."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.interpolate import BSpline

from sharding.registration.n4 import ORDER, basis, fit_field, product, refined, sharpened
from sharding.simulation.phantom import phantom_volume


@pytest.fixture(scope="module")
def biased():
    """A phantom under a smooth field, and where its tissue is."""
    data = phantom_volume((48, 44, 40), seed=1).data
    x, y, z = np.ogrid[-1:1:48j, -1:1:44j, -1:1:40j]
    field = 1 + 0.2 * x - 0.15 * y + 0.1 * z * x
    return (data * field).astype(np.float32), data > 200


@pytest.mark.parametrize(
    ("iterations", "convergence"), [((4,), 1e-9), ((3, 3, 2), 1e-9), ((50, 50), 1e-3)]
)
def test_the_field_is_that_of_itk(iterations, convergence, biased):
    image, mask = biased
    points = (5, 4, 4)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(iterations)
    n4.SetConvergenceThreshold(convergence)
    n4.SetSplineOrder(ORDER)
    n4.SetNumberOfControlPoints(points)
    given = sitk.GetImageFromArray(np.ascontiguousarray(image.T))
    n4.Execute(given, sitk.GetImageFromArray(np.ascontiguousarray(mask.T.astype(np.uint8))))
    expected = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(given)).T
    found = fit_field(image, mask, points, iterations, convergence).log_field(image.shape)
    assert expected[mask].std() > 0.005
    # ITK sums in float32.
    assert np.abs(found - expected)[mask].max() < 0.01 * expected[mask].std()


def test_a_field_can_be_evaluated_on_a_finer_grid(biased):
    image, mask = biased
    fitted = fit_field(image, mask, (4, 4, 4), (3,), 1e-9)
    fine = fitted.log_field([2 * side - 1 for side in image.shape])
    np.testing.assert_allclose(fine[::2, ::2, ::2], fitted.log_field(image.shape), atol=1e-12)


@pytest.mark.parametrize("points", [4, 5, 9])
def test_the_basis_is_that_of_uniform_cubic_splines(points):
    spans = points - ORDER
    knots = np.arange(-ORDER, spans + ORDER + 1)
    places = np.linspace(0, spans, 23)
    expected = BSpline(knots, np.eye(points), ORDER)(places)
    np.testing.assert_allclose(basis(23, points), expected, atol=1e-12)


def test_a_refined_lattice_is_the_same_spline():
    lattice = np.random.default_rng(0).normal(size=(4, 6, 5))
    finer = refined(lattice)
    assert finer.shape == (5, 9, 7)
    shape = (17, 13, 9)
    coarse, fine = (
        product(each, [basis(side, count) for side, count in zip(shape, each.shape, strict=True)])
        for each in (lattice, finer)
    )
    np.testing.assert_allclose(fine, coarse, atol=1e-12)


def test_two_blurred_tissues_are_sharpened_towards_their_own_values():
    rng = np.random.default_rng(0)
    tissue = np.repeat([5.0, 6.0], 5000)
    found = sharpened(tissue + rng.normal(0, 0.064, 10_000))
    assert np.abs(found - tissue).mean() < 0.5 * 0.064 * np.sqrt(2 / np.pi)


def test_equal_values_have_no_field():
    image = np.full((8, 8, 8), 7.0, np.float32)
    fitted = fit_field(image, np.ones(image.shape, bool), (4, 4, 4), (5,), 1e-3)
    assert not fitted.lattice.any()
