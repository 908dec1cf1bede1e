from fewstep.nets.embedding import TimeEmbedding as TimeEmbedding
from fewstep.nets.mlp import MLP as MLP
