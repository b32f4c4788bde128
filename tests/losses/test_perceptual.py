import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.perceptual import PerceptualLoss
from distsynth.losses.registry import LossConfig

# Torchvision's vgg16().features as (index, inputs, outputs), with the layers after the last cut.
CONVOLUTIONS = [
    (0, 3, 64),
    (2, 64, 64),
    (5, 64, 128),
    (7, 128, 128),
    (10, 128, 256),
    (12, 256, 256),
    (14, 256, 256),
    (17, 256, 512),
    (19, 512, 512),
    (21, 512, 512),
]
POOLS = (4, 9, 16)


@pytest.fixture(scope="module")
def state():
    """Random weights under torchvision's names, with keys that the loss must leave alone."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"classifier.0.weight": torch.zeros(2, 2), "features.24.bias": torch.zeros(512)}
    for index, inputs, outputs in CONVOLUTIONS:
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        tensors[f"features.{index}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """A file as torchvision publishes it: torch's format of before 1.6."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def perceptual(weights):
    return PerceptualLoss(weights, "image")


def features_of_layers(state, slices, last):
    """The first `last` layers, one after another by index."""
    convolutions = {index for index, _, _ in CONVOLUTIONS}
    for index in range(last):
        if index in convolutions:
            slices = functional.conv2d(
                slices,
                state[f"features.{index}.weight"],
                state[f"features.{index}.bias"],
                padding=1,
            )
        elif index in POOLS:
            slices = functional.max_pool2d(slices, 2)
        else:
            slices = slices.clamp(min=0)
    return slices


def standardised(image):
    return (image - image.mean()) / image.std(correction=0)


def by_hand(state, synthetic, target):
    """Section 6.4 for batches of 2D slices that are already standardised."""
    total = 0.0
    for last in (4, 9, 16, 23):
        features = [
            features_of_layers(state, images.repeat(1, 3, 1, 1), last)
            for images in (synthetic, target)
        ]
        total += (features[0] - features[1]).abs().mean().item()
    return total


def test_the_cut_points_by_a_plain_sequence(perceptual, state):
    synthetic, target = torch.randn(2, 2, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    expected = by_hand(
        state,
        torch.stack([standardised(image) for image in synthetic]),
        torch.stack([standardised(image) for image in target]),
    )
    assert perceptual(synthetic, target).item() == pytest.approx(expected, rel=1e-4)


def test_blocks_are_standardised_whole_and_judged_by_slices(perceptual, state):
    synthetic, target = torch.randn(2, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = by_hand(
        state, standardised(synthetic)[0].transpose(0, 1), standardised(target)[0].transpose(0, 1)
    )
    assert perceptual(synthetic, target).item() == pytest.approx(expected, rel=1e-4)


def test_equal_images_are_at_no_distance(perceptual, weights):
    image = torch.randn(2, 1, 16, 16)
    assert perceptual(image, image) == 0
    assert PerceptualLoss(weights)(image, image) == 0


def test_gain_and_offset_are_seen_unless_each_image_is_standardised(perceptual, weights):
    image = torch.randn(2, 1, 16, 16)
    assert perceptual(3 * image + 7, image).item() == pytest.approx(0, abs=1e-4)
    fixed = PerceptualLoss(weights)
    for other in (3 * image, image + 7, 0.9 * image):
        assert fixed(other, image) > 1e-3


def test_the_fixed_scale_takes_intensities_as_they_are(weights, state):
    synthetic, target = torch.randn(2, 2, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    expected = by_hand(state, synthetic, target)
    assert PerceptualLoss(weights)(synthetic, target).item() == pytest.approx(expected, rel=1e-4)


def test_a_constant_image_is_finite(perceptual):
    synthetic = torch.zeros(1, 1, 16, 16, requires_grad=True)
    loss = perceptual(synthetic, torch.randn(1, 1, 16, 16))
    loss.backward()
    assert loss.isfinite() and synthetic.grad is not None and synthetic.grad.isfinite().all()


def test_gradient_flows_to_synthetic_only(perceptual):
    synthetic, target = (torch.randn(1, 1, 16, 16, requires_grad=True) for _ in range(2))
    perceptual(synthetic, target).backward()
    assert synthetic.grad is not None and synthetic.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


def test_it_stays_in_evaluation_mode(weights):
    config = LossConfig(lambda_perceptual=1.0, vgg_weights=str(weights))
    criterion = GeneratorLoss(config).train()
    assert criterion.training
    networks = [part for part in criterion.modules() if isinstance(part, PerceptualLoss)]
    assert networks
    assert not any(module.training for network in networks for module in network.modules())


def test_distances_are_float32_under_autocast(perceptual):
    synthetic, target = torch.randn(2, 1, 1, 16, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert perceptual(synthetic, target).dtype == torch.float32


def test_building_it_leaves_the_random_numbers_alone(weights):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    PerceptualLoss(weights)
    assert torch.equal(torch.rand(1), expected)


def test_safetensors_and_half_precision_files_are_read(state, perceptual, tmp_path):
    path = tmp_path / "vgg16.safetensors"
    save_file({name: tensor.half() for name, tensor in state.items()}, path)
    loaded = PerceptualLoss(str(path)).state_dict()
    for name, tensor in perceptual.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)


def test_without_a_name_the_torch_hub_cache_is_read(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    with pytest.raises(ConfigError, match=rf"loss\.vgg_weights .*{checkpoints}.*download"):
        PerceptualLoss()
    checkpoints.mkdir(parents=True)
    (checkpoints / "vgg16-397923af.pth").symlink_to(weights)
    assert isinstance(PerceptualLoss(), nn.Module)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"vgg16{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=rf"^loss\.vgg_weights .* readable .*{path}"):
        PerceptualLoss(path)


def test_files_of_other_things_are_refused(state, tmp_path):
    path = tmp_path / "other.pth"
    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match=r"^loss\.vgg_weights .* with a list"):
        PerceptualLoss(path)
    torch.save({"features.0.weight": state["features.0.weight"]}, path)
    with pytest.raises(ConfigError, match=r"^loss\.vgg_weights .* features\.0\.bias is missing"):
        PerceptualLoss(path)
    torch.save(state | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(ConfigError, match=r"features\.0\.weight has shape \(64, 1, 3, 3\)"):
        PerceptualLoss(path)


def test_shapes_that_cannot_be_judged(perceptual):
    with pytest.raises(ValueError, match="at least 16 voxels"):
        perceptual(torch.zeros(1, 1, 16, 15), torch.zeros(1, 1, 16, 15))
    with pytest.raises(ValueError, match="same shape"):
        perceptual(torch.zeros(2, 1, 16, 16), torch.zeros(1, 1, 16, 16))
    assert perceptual(torch.zeros(1, 1, 2, 16, 16), torch.zeros(1, 1, 2, 16, 16)) == 0
