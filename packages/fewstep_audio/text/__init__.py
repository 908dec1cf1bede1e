from fewstep_audio.text.english import spell_out as spell_out
from fewstep_audio.text.espeak import Espeak as Espeak
from fewstep_audio.text.gruut import Gruut as Gruut
from fewstep_audio.text.pieces import pieces as pieces
from fewstep_audio.text.symbols import Characters as Characters
from fewstep_audio.text.symbols import Symbols as Symbols
from fewstep_audio.text.symbols import TextError as TextError
