from fewstep.reward_search.beam import beam_search as beam_search
from fewstep.reward_search.found import Found as Found
from fewstep.reward_search.rollover import rollover as rollover
from fewstep.reward_search.starts import best_of_n as best_of_n
from fewstep.reward_search.starts import zero_order as zero_order
from fewstep.reward_search.trajectories import search_trajectories as search_trajectories
