from fewstep_audio.tts.encoder import TextEncoder as TextEncoder
from fewstep_audio.tts.residual1d import Residual1d as Residual1d
from fewstep_audio.tts.text_to_speech import SpeechJumps as SpeechJumps
from fewstep_audio.tts.text_to_speech import TextToSpeech as TextToSpeech
from fewstep_audio.tts.unet1d import UNet1d as UNet1d
from fewstep_audio.tts.unet2d import UNet2d as UNet2d
