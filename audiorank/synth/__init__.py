"""The synthetic dataset: labelled sounds, made by a program.

`write_audio` makes recordings for pretraining, `write_tasks` task folders in
HEAR's layout. Both are pure functions of a seed: the same clips bit for bit on
one platform, within one int16 step on another.
"""

from audiorank.synth.waves import RATE
from audiorank.synth.tasks import LONG
from audiorank.synth.tasks import TASKS
from audiorank.synth.write import VERSION
from audiorank.synth.write import clips
from audiorank.synth.write import write_audio
from audiorank.synth.write import write_tasks
