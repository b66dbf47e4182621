"""`python -m ilm_lib.study PROFILE`."""

from ilm_lib.study.grid import main

if __name__ == "__main__":
    raise SystemExit(main())
