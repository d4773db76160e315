"""python run_lab.py SPEC_FILE [SPEC_NAME] MODE"""

import sys

from slm_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
