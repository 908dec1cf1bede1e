from fewstep.pairs.folder import PairsError as PairsError
from fewstep.pairs.job import Job as Job
from fewstep.pairs.make import make_pairs as make_pairs
from fewstep.pairs.stored import StoredPairs as StoredPairs
