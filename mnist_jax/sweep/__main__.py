import sys

from mnist_jax.sweep.run import main

sys.exit(main())
