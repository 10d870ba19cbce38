"""`python -m service` is the `rankpress` command."""

from service.cli.main import main

if __name__ == "__main__":  # not in processes that training starts for its generated pictures
    main()
