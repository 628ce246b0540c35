"""python -m batchseg."""

from batchseg.cli import main

if __name__ == "__main__":
    main()
