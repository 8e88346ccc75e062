"""Real CrewAI crews and flows in sixteen workers: first on CrewAI's own storage, then on walpool.

    make demo        or        python examples/demo.py [--quick] [--json] [--results FOLDER]

No network, no key: the model is scripted and the embedder hashes words (offline.py). The folder demo/ beside this file
holds the parts: workload.py is what an application would write, the rest measures it.
"""

import sys

from demo.main import main  # the folder: Python prefers it to a file of the same name

sys.exit(main())
