import itertools
import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.cli.main import main
from distsynth.config import RunConfig, from_json, to_json, with_overrides
from distsynth.errors import ConfigError
from distsynth.models import (
    DISCRIMINATOR_FAMILIES,
    GENERATOR_FAMILIES,
    ConvDiscriminatorConfig,
    ConvStackConfig,
    DenseConfig,
    EncoderDecoderConfig,
    FeedbackConfig,
    GatedUNetConfig,
    HalfResolutionConfig,
    NoDiscriminatorConfig,
    PatchGANConfig,
    RecursiveConfig,
    ResidualConfig,
    ResidualDenseConfig,
    ResidualUNetConfig,
    UNetConfig,
    build_discriminator,
    build_generator,
    parameter_count,
)
from distsynth.models.generators.unet import unet_levels
from distsynth.models.layers import depth_to_space, space_to_depth
from distsynth.models.sharpen import Sharpen, sharpening_kernel
from distsynth.rules import check_rules

UNET = UNetConfig((16, 32, 64, 128, 128, 128))
SMALL_GENERATORS = {
    "conv": ConvStackConfig((4, 6), (3, 5, 1)),
    "encoder-decoder": EncoderDecoderConfig((4, 6, 6), (5, 3, 3)),
    "dense": DenseConfig((4, 4, 4), (3,)),
    "unet": UNetConfig((4, 6, 8, 8, 8, 8)),
    "residual": ResidualConfig(4, 2),
    "residual-dense": ResidualDenseConfig(4, 2, 3, 2),
    "recursive": RecursiveConfig(4, 3),
    "feedback": FeedbackConfig(4, 3, 2),
    "half-resolution": HalfResolutionConfig(4, 2),
    "residual-unet": ResidualUNetConfig((4, 6), 1, 1),
    "gated-unet": GatedUNetConfig((4, 6), 1, 1),
}
SMALL_DISCRIMINATORS = {
    "stride": ConvDiscriminatorConfig((4, 6, 8, 8), (7, 5, 5, 3)),
    "maxpool": ConvDiscriminatorConfig((4, 6, 6, 8, 8), (7, 5, 5, 5, 3), downsample="maxpool"),
    "patchgan": PatchGANConfig((4, 6, 8, 8), conditional=True),
}
PATCHES = [(64, 64), (32, 32), (32, 64), (16, 16, 16), (32, 16, 16)]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ConvStackConfig((32, 64, 128), (9, 7, 5, 1)), 308_545),
        (EncoderDecoderConfig((32, 64, 64), (5, 3, 3)), 155_681),
        (DenseConfig((24, 24, 24, 24, 24), (3,)), 53_977),
        (ConvStackConfig((8, 20, 24, 4), (3,), norm_first=False), 6_885),
        (ConvStackConfig((16, 64, 128, 196), (7, 5, 5, 3, 1)), 458_385),
        (ConvStackConfig((16, 64, 128, 128, 196), (7, 5, 5, 5, 3, 1)), 868_369),
        (UNET, 1_829_025),
    ],
    ids=["fcn-1", "fcn-2", "dcsrn", "dcgan-1", "dcgan-2", "dcgan-3", "unet"],
)
def test_generators_have_the_papers_parameter_counts(config, parameters):
    assert parameter_count(build_generator(config, (64, 64))) == parameters


def weights_of(kernel, *layers):
    """Parameters of convolutions with bias: pairs of inputs and outputs under one kernel."""
    return sum(kernel * inputs * outputs + outputs for inputs, outputs in layers)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_parameter_counts_by_hand(dims, channels):
    three, four = 3**dims, 4**dims
    edsr = weights_of(three, (channels, 32), *[(32, 32)] * 17, (32, 1))
    # Blocks of growth 16 on 24 maps, each fused from 24 + 4 x 16.
    dense = weights_of(three, (24, 16), (40, 16), (56, 16), (72, 16)) + weights_of(1, (88, 24))
    rdn = weights_of(three, (channels, 24), (24, 24), (24, 24), (24, 1)) + weights_of(1, (96, 24))
    # The shared convolution counts once, and each recursion has a weight.
    drcn = weights_of(three, (channels, 32), *[(32, 32)] * 3, (32, 1)) + 8
    projections = weights_of(four, (channels, 64), *[(16, 16)] * 7) + weights_of(three, (16, 1))
    fusions = weights_of(1, (64, 16), (32, 16), *[(32, 16), (48, 16)] * 2, (48, 16))
    srfbn = projections + fusions + 15  # slopes of PReLU: one after each layer but the last
    expected = {
        ResidualConfig(32, 8): edsr,
        ResidualDenseConfig(24, 4, 4, 16): rdn + 4 * dense,
        RecursiveConfig(32, 8): drcn,
        FeedbackConfig(16, 3, 4): srfbn,
        HalfResolutionConfig(32, 5): weights_of(
            three, (channels * 2**dims, 32), *[(32, 32)] * 10, (32, 2**dims)
        ),
    }
    for config, parameters in expected.items():
        built = build_generator(config, (16,) * dims, channels)
        assert parameter_count(built) == parameters, config
    if (dims, channels) == (2, 1):
        assert list(expected.values()) == [157_825, 132_593, 28_361, 35_008, 94_820]
    if (dims, channels) == (3, 1):
        assert expected[HalfResolutionConfig(32, 5)] == 290_664


@pytest.mark.parametrize("init", ["default", "normal"])
@pytest.mark.parametrize("sides", [(8, 6), (8, 6, 4)], ids=str)
def test_an_untrained_half_resolution_network_returns_the_source(sides, init):
    source = torch.randn(2, 3, *sides)
    generator = build_generator(HalfResolutionConfig(4, 2, init=init), sides, 3)
    assert torch.equal(generator(source), source[:, 1:2])


@pytest.mark.parametrize("sides", [(8, 6), (8, 6, 4)], ids=str)
def test_cells_become_channels_and_voxels_again(sides):
    image = torch.arange(2 * 3 * math.prod(sides)).reshape(2, 3, *sides)
    cells = space_to_depth(image, 2)
    assert cells.shape == (2, 3 * 2 ** len(sides), *(side // 2 for side in sides))
    assert torch.equal(cells[:, 0], image[(slice(None), 0, *[slice(0, None, 2)] * len(sides))])
    assert torch.equal(depth_to_space(cells, 2), image)


def test_srcnn_is_a_stack_of_three():
    expected = weights_of(81, (1, 64)) + weights_of(1, (64, 32)) + weights_of(25, (32, 1))
    config = ConvStackConfig((64, 32), (9, 1, 5), norm="none")
    assert parameter_count(build_generator(config, (64, 64))) == expected == 8_129


def test_recursions_share_their_weights_and_not_their_norms():
    deep, flat = (RecursiveConfig(4, depth, norm="batch") for depth in (9, 3))
    more = parameter_count(build_generator(deep, (16, 16))) - parameter_count(
        build_generator(flat, (16, 16))
    )
    assert more == 6 * (1 + 2 * 4)
    generator = build_generator(RecursiveConfig(4, 3), (8, 8))
    seen = []
    generator.network.shared.register_forward_hook(lambda *_: seen.append(1))
    generator(torch.zeros(1, 1, 8, 8))
    assert len(seen) == 3


def test_feedback_reads_its_own_output():
    generator = build_generator(FeedbackConfig(4, 2, 3), (8, 8))
    states = []
    generator.network.block.register_forward_hook(lambda _, given, out: states.append((given, out)))
    generator(torch.randn(1, 1, 8, 8))
    assert len(states) == 3
    for (_, before), ((stem, state), _) in itertools.pairwise(states):
        assert torch.equal(stem, states[0][0][0]) and torch.equal(state, before)
    assert states[0][1].shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ResidualConfig(features=0), "features must be from 1 to 16384, got 0"),
        (ResidualConfig(kernel=4), "kernel must be positive odd sizes"),
        (ResidualConfig(block_scale=0.0), "block_scale must be > 0, got 0"),
        (ResidualDenseConfig(layers=257), "layers must be from 1 to 256, got 257"),
        (RecursiveConfig(recursions=0), "recursions must be from 1 to 256, got 0"),
        (FeedbackConfig(groups=0), "groups must be from 1 to 256, got 0"),
    ],
)
def test_sizes_have_bounds(config, message):
    with pytest.raises(ConfigError, match=message):
        check_rules("generator", config.rules())


@pytest.mark.parametrize("family", SMALL_GENERATORS)
def test_every_field_is_an_option_and_survives_json(family, capsys):
    config = SMALL_GENERATORS[family]
    run = with_overrides(RunConfig(generator=config), {})
    assert from_json(to_json(run)).generator == config
    with pytest.raises(SystemExit) as ended:
        main(["train", "small", "--generator.family", family, "--help-all"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for item in fields(config):
        assert re.search(rf"--generator\.{item.name.replace('_', '-')}[ ,]", shown), item.name


def test_feedback_halves_the_sides():
    for sides, norm in (((7, 8), "none"), ((2, 8), "instance")):
        with pytest.raises(ConfigError, match=r"data\.patch_size must have even sides"):
            build_generator(FeedbackConfig(4, norm=norm), sides)
    assert build_generator(FeedbackConfig(4), (2, 2))(torch.zeros(1, 1, 2, 2)).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ConvDiscriminatorConfig((8, 20, 24, 4), (3,)), 6_853),
        (ConvDiscriminatorConfig((16, 64, 128, 196), (7, 5, 5, 3)), 458_353),
        (
            ConvDiscriminatorConfig((16, 64, 128, 128, 196), (7, 5, 5, 5, 3), downsample="maxpool"),
            868_337,
        ),
        # pix2pix's own, with 2 input channels where it has 6 (2,768,705).
        (PatchGANConfig((64, 128, 256, 512), conditional=True), 2_764_609),
    ],
    ids=["b", "d", "f", "h"],
)
def test_discriminator_parameter_counts(config, parameters):
    assert parameter_count(build_discriminator(config, (64, 64))) == parameters


def test_every_family_of_the_configuration_is_covered():
    assert set(GENERATOR_FAMILIES) == set(SMALL_GENERATORS)
    found = {config.family for config in SMALL_DISCRIMINATORS.values()}
    assert set(DISCRIMINATOR_FAMILIES) == {"none", *found}


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("patch_size", PATCHES, ids=str)
@pytest.mark.parametrize("family", SMALL_GENERATORS)
def test_generators_keep_the_patch(family, patch_size, norm):
    config = replace(SMALL_GENERATORS[family], norm=norm)
    generator = build_generator(config, patch_size, in_channels=3)
    synthetic = generator(torch.randn(2, 3, *patch_size))
    assert synthetic.shape == (2, 1, *patch_size)
    synthetic.square().mean().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("patch_size", [(64, 64), (32, 32), (32, 32, 32)], ids=str)
@pytest.mark.parametrize("name", SMALL_DISCRIMINATORS)
def test_discriminators_judge_the_patch(name, patch_size, norm):
    config = replace(SMALL_DISCRIMINATORS[name], norm=norm)
    discriminator = build_discriminator(config, patch_size)
    image, source = torch.randn(2, 2, 1, *patch_size)
    logits = discriminator(image, source)
    sides = [side // 8 - 2 for side in patch_size] if name == "patchgan" else []
    assert logits.shape == (2, 1, *sides)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("name", SMALL_DISCRIMINATORS)
def test_only_a_conditional_discriminator_sees_the_source(name, conditional):
    config = replace(SMALL_DISCRIMINATORS[name], conditional=conditional)
    discriminator = build_discriminator(config, (32, 32), in_channels=3).eval()
    image = torch.randn(2, 1, 32, 32)
    source, other = torch.randn(2, 2, 3, 32, 32)
    changes = not torch.equal(discriminator(image, source), discriminator(image, other))
    assert changes == conditional


@pytest.mark.parametrize(
    ("patch_size", "levels"),
    [
        ((64, 64), 6),
        ((32, 32), 5),
        ((128, 128), 6),
        ((64, 48), 4),
        ((16, 32, 64), 4),
        ((20, 20), 2),
    ],
)
def test_unet_depth_follows_the_patch(patch_size, levels):
    assert unet_levels(patch_size, 6) == levels
    assert build_generator(UNET, patch_size).multiple == 2**levels


@given(st.lists(st.integers(4, 200), min_size=2, max_size=3), st.integers(2, 7))
def test_unet_depth_is_the_largest_that_divides_every_side(sides, most):
    shared = math.gcd(*sides)
    fits = [levels for levels in range(2, most + 1) if shared % 2**levels == 0]
    if fits:
        assert unet_levels(sides, most) == max(fits)
    else:
        with pytest.raises(ConfigError, match=r"data\.patch_size"):
            unet_levels(sides, most)


def test_unet_trains_on_a_single_patch_with_a_bottleneck_of_one_voxel():
    for norm in ("batch", "instance"):
        unet = build_generator(UNetConfig((4,) * 5, norm=norm), (32, 32))
        assert unet(torch.randn(1, 1, 32, 32)).isfinite().all()


@pytest.mark.parametrize("family", ["unet", "encoder-decoder"])
def test_sides_that_cannot_be_halved_are_refused(family):
    config = SMALL_GENERATORS[family]
    with pytest.raises(ConfigError, match=r"data\.patch_size .* divisible by .* got \(62, 64\)"):
        build_generator(config, (62, 64))
    generator = build_generator(config, (16, 16))
    assert generator(torch.zeros(1, 1, 32, 48)).shape == (1, 1, 32, 48)
    with pytest.raises(ValueError, match=r"divisible by .* got \(20, 16\); pad or crop"):
        generator(torch.zeros(1, 1, 20, 16))


@pytest.mark.parametrize(
    ("name", "least"),
    [("stride", 16), ("maxpool", 32), ("patchgan", 24)],
)
def test_discriminators_refuse_patches_that_are_too_small(name, least):
    config = SMALL_DISCRIMINATORS[name]
    for dims in (2, 3):
        discriminator = build_discriminator(config, (least,) * dims)
        assert discriminator(*torch.randn(2, 2, 1, *(least,) * dims)).numel() == 2
        with pytest.raises(ConfigError, match=rf"data\.patch_size .* at least {least} voxels"):
            build_discriminator(config, (least - 1,) * dims)


def test_instance_norm_never_meets_a_single_voxel():
    config = ConvDiscriminatorConfig((4, 4, 4), (3,), norm="instance")
    with pytest.raises(ConfigError, match=r"data\.patch_size"):
        build_discriminator(config, (8, 8))
    discriminator = build_discriminator(config, (9, 9))
    assert discriminator(*torch.randn(2, 2, 1, 9, 9)).shape == (2, 1)


def test_no_discriminator_cannot_be_built():
    with pytest.raises(ConfigError, match=r"discriminator\.family"):
        build_discriminator(NoDiscriminatorConfig(), (64, 64))


@pytest.mark.parametrize(
    ("output", "low", "high"),
    [("tanh", -1, 1), ("sigmoid", 0, 1), ("relu", 0, math.inf), ("linear", -math.inf, math.inf)],
)
def test_output_activation_bounds_the_synthetic_image(output, low, high):
    torch.manual_seed(0)
    config = ConvStackConfig((4,), (3,), norm="none", output=output)
    synthetic = build_generator(config, (16, 16))(100 * torch.randn(2, 1, 16, 16))
    assert low <= synthetic.min() and synthetic.max() <= high
    assert (synthetic.min() < 0) == (low < 0)


def test_residual_adds_the_centre_channel_of_the_source():
    config = ConvStackConfig((4,), (3,), residual=True)
    generator = build_generator(config, (16, 16), in_channels=3).eval()
    source = torch.randn(2, 3, 16, 16)
    learnt = generator.network(source)
    torch.testing.assert_close(generator(source), learnt + source[:, 1:2])


def test_sharpening_follows_the_residual():
    config = ConvStackConfig((4,), (3,), residual=True, sharpen="5x5")
    generator = build_generator(config, (16, 16)).eval()
    source = torch.randn(2, 1, 16, 16)
    unsharpened = generator.network(source) + source
    torch.testing.assert_close(generator(source), Sharpen("5x5", 2)(unsharpened))


def test_sharpening_adds_nothing_to_train_or_to_save():
    plain = build_generator(ConvStackConfig(), (16, 16))
    sharpened = build_generator(ConvStackConfig(sharpen="3x3"), (16, 16))
    assert parameter_count(sharpened) == parameter_count(plain)
    assert sharpened.state_dict().keys() == plain.state_dict().keys()


def test_2d_sharpening_kernels_are_the_papers_matrices():
    three = [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]
    five = -np.array(
        [
            [1, 4, 6, 4, 1],
            [4, 16, 24, 16, 4],
            [6, 24, -476, 24, 6],
            [4, 16, 24, 16, 4],
            [1, 4, 6, 4, 1],
        ]
    )
    np.testing.assert_array_equal(sharpening_kernel("3x3", 2), three)
    np.testing.assert_array_equal(sharpening_kernel("5x5", 2), five / 256)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["3x3", "5x5"])
def test_sharpening_kernels_sum_to_1_and_have_the_cubes_symmetry(name, dims):
    kernel = sharpening_kernel(name, dims)
    assert kernel.sum() == 1
    assert torch.equal(kernel, kernel.transpose(0, dims - 1))
    for axis in range(dims):
        assert torch.equal(kernel, kernel.flip(axis))


def test_3d_sharpening_kernel_centres():
    assert sharpening_kernel("3x3", 3)[1, 1, 1] == 7
    assert sharpening_kernel("5x5", 3)[2, 2, 2] == 2 - 6**3 / 16**3


def test_unknown_sharpening_kernel():
    with pytest.raises(ValueError, match="3x3 or 5x5, got 7x7"):
        sharpening_kernel("7x7", 2)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1e3, 1e3, width=32), st.sampled_from(["3x3", "5x5"]), st.sampled_from([2, 3]))
def test_a_constant_image_passes_sharpening_unchanged(value, name, dims):
    image = torch.full((1, 1, *(6,) * dims), value)
    torch.testing.assert_close(Sharpen(name, dims)(image), image)


def test_sharpening_an_interior_voxel_by_hand():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    assert torch.equal(Sharpen("3x3", 2)(image)[0, 0], expected)
