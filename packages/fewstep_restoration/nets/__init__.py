from fewstep_restoration.nets.film_resnet import FiLMResNet as FiLMResNet
from fewstep_restoration.nets.film_unet import FiLMUNet as FiLMUNet
