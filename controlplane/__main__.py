"""`python -m controlplane` is `meshctl`."""

from controlplane.cli import main

if __name__ == "__main__":
    main()
