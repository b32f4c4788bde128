# %% [markdown]
# # From phantoms to an evaluated model
#
# Five phantom specimens with simulated low-field sources are cut into patches, a small network is
# trained on them, and its stitched volumes are compared with the baselines. It takes some seconds
# on a laptop without a GPU. With scans of your own, start at `ds.read_cohort("cohort.csv")`.

# %%
import distsynth as ds

specimens = ds.make_phantoms("quickstart/cohort", specimens=5, shape=(48, 48, 40))

# %% [markdown]
# Whole specimens are split into training, validation and test; no patch crosses the border.

# %%
cut = ds.ShardConfig(patch_size=(32, 32), stride=16, patches_per_specimen=64, val_slices=8)
shards = ds.shard(specimens, "quickstart/shards", cut)
print({split: shards.manifest.patches(split) for split in ("train", "val", "test")})

# %% [markdown]
# A preset is a whole configuration; any of its fields can be replaced.

# %%
fields = {"data.shards": "quickstart/shards", "stitch.stride": 16}
config = ds.load_config("small", fields | {"train.epochs": 2, "train.batch_size": 16})
run = ds.train(config, "quickstart/run")

# %% [markdown]
# A checkpoint knows all that is needed to predict. `predict` takes a file or a volume.

# %%
synthetic = ds.load_predictor(run.best).predict("quickstart/cohort/phantom-00_source.nii.gz")
print(synthetic.shape, synthetic.spacing_mm)

# %% [markdown]
# The evaluation on the test specimens, in decibels, beside the baselines. The folder also holds
# tables, pictures and a page, report.html.

# %%
evaluation = ds.evaluate("quickstart/run", specimens, "quickstart/evaluation")
print(evaluation.frame()[["psnr_mask", "ssim_global_mask"]].round(3))
