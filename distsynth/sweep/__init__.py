"""A sweep: many runs over a search space, on whatever resources a Ray cluster has (Ray Tune).

plan             what is asked for: base configuration, space, search, scheduler, resources
hyperparameters  sampling them from a space; the configuration that they make
space            what a space must be before it is searched; the presets that lie in it
folder           what a sweep keeps: plain files that outlive every process
leaderboard      trials ranked by their score
searcher         hyperparameters that Optuna suggests, and how much each of them matters
schedulers       which trials continue: FIFO, ASHA, population based training
trial            one run as Ray Tune sees it
ddp_workers      the other ranks of a trial with several workers
callback         the Tune callback: keeps the records, shows the live table, says why trials wait
cluster          joins a Ray cluster or starts one on this machine
checks           what would make every trial fail, found before anything starts
tuner            hands trials to Ray Tune
run              all of it: start, resume, extend
finalists        the best trials exported and evaluated on the test split
figures, page    the pictures and the page of a sweep
"""
