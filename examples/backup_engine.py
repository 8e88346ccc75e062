"""A backup engine on a file or on PostgreSQL: FastAPI, a pool made in the lifespan, jobs that write as /health answers.

    python examples/backup_engine.py [--jobs 32] [--packs 200] [--upload-ms 20] [--json]    # a demonstration
    python examples/backup_engine.py --database postgresql://app@db.example/backups         # the same on a server
    python examples/backup_engine.py --serve [--port 8000] [--data FOLDER]                  # until Ctrl-C

    curl -X POST localhost:8000/backups -H 'content-type: application/json' -d '{"jobs": 4, "packs": 1000}'
    curl localhost:8000/backups

The folder backup_engine/ beside this file holds the parts: app.py is what an application would write, the rest shows
it. It needs fastapi, uvicorn and httpx.
"""

import sys

from backup_engine.main import main  # the folder: Python prefers it to a file of the same name

sys.exit(main())
