"""`python -m ilm_lib.study PROFILE`."""

try:
    from ilm_lib.study.grid import main

    status = main()
except KeyboardInterrupt:  # before there was anything to stop
    status = 130
raise SystemExit(status)
