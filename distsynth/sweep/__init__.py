"""A sweep: many runs over a search space, on whatever a Ray cluster has (Ray Tune).

plan        what is asked: base configuration, space, search, scheduler, resources
points      a sampled point -> RunConfig; drawing and checking points
folder      what a sweep keeps: plain files that outlive every process
leaderboard trials in order of their score, and what each parameter matters
search      points that Optuna suggests
schedulers  who goes on: FIFO, ASHA, population based training
trial       one run as Ray Tune sees it
gang        the other ranks of a trial with several workers
watch       the driver's eyes: records, live table, what is waited for
cluster     joining a Ray cluster or starting one on this machine
tuning      handing trials to Ray Tune
run         all of it: start, resume, extend
finish      the best trials on the test split, exported
"""
