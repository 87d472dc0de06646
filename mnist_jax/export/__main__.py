import sys

from mnist_jax.export.stablehlo import main

sys.exit(main())
