"""mnist_jax: training a digit classifier is a pure function, and a whole run is one compiled program.

    from mnist_jax import MLP, create_train_state, load_dataset, train_step

The public names, by task. ``help(mnist_jax.fit)`` explains a name, with an example.

Train a run
    TrainConfig                 every choice of a run: data, model, optimizer, output
    preset                      returns the config of a preset, such as ``fast``
    fit                         trains and evaluates a model, and writes the run directory
    Callback                    reacts to the events of ``fit``
    Training                    a run in progress, as callbacks see it
    Run                         a finished run: state, history, final numbers and ``plot()``
    find_runs                   finds the runs in a directory
    RunInfo                     config and results of a run that was found
    load_run                    loads the config and the newest state of a run
    load_run_dataset            loads the data that a run was trained on
    train_population            trains models together, over seeds and hyperparameters
    Population                  models trained together
    run_sweep                   searches hyperparameters
    Search                      search space and method
    Sweep                       a finished search
    Trial                       the result of one trial

Build your own training
    create_train_state          initialises any model with any optax optimizer
    TrainState                  everything that training changes, and its ``recipe``
    Recipe                      the functions and constants that decide a step
    train_step                  takes one optimizer step on a batch
    train_epoch                 shuffles and trains an epoch, as one program
    train_steps                 trains on the examples of a split in a given order
    epoch_order                 returns the shuffled order of an epoch
    eval_step                   computes the metrics of a batch
    Metrics                     sums and counts over examples, with loss and accuracy
    ExampleMetrics              loss, correctness, margin and confidence of each example
    loss_fn                     computes the training loss of a batch
    cross_entropy               computes the loss of each example
    CrossEntropy                cross-entropy with label smoothing
    MeanLoss                    a loss per example, averaged over a batch as a ``loss_fn``
    VirtualAdversarialLoss      penalty on predictions that change close to an image
    mean_gradient               computes the gradient of a whole batch at once
    AccumulatedGradient         gradient summed over microbatches, which takes less memory
    PrivateGradient             clipped per example, with noise: differential privacy
    PoissonOrder                samples the batches of private training
    Privacy                     accounts for epsilon
    Augmentation                random distortion of images
    save_checkpoint             saves a state
    restore_checkpoint          restores the newest intact checkpoint
    build_state                 builds the initial state of a ``TrainConfig``
    build_optimizer             builds the optimizer of a ``TrainConfig``
    build_schedule              builds the learning rate of a ``TrainConfig``, by step
    build_augmentation          builds the augmentation of a ``TrainConfig``
    choose_microbatch_size      returns the fastest microbatch size on this platform

Data
    load_dataset                loads a data set by name, from a directory or from a CSV
    Dataset                     training, validation and test split
    Split                       images and their labels
    StreamedSplit               training examples that are read from disk on demand
    write_shards                writes array_record shards, for data larger than memory
    prepare_dataset             writes IDX files as a data set of tensorflow-datasets
    stream_batches              yields shuffled batches
    prefetch                    moves batches to the device before they are needed

Models
    MLP                         multilayer perceptron
    CNN                         convolutional network
    build_model                 builds the model of a ``TrainConfig``
    apply_model                 runs the model of a state with given parameters
    model_table                 lists the layers of a model
    count_parameters            counts the scalars in a parameter tree

Evaluate and look inside
    evaluate_dataset            evaluates a state on a split
    evaluate_views              evaluates on distorted copies too (test-time augmentation)
    Evaluation                  logits of a split, with loss and accuracy
    evaluate_run                evaluates a run, and writes numbers, figures and a page
    RunReport                   the evaluation of a run
    saliency                    computes how much each pixel changes the predicted logit
    Calibration                 confidence and accuracy in bins, with their difference (ECE)
    fit_temperature             fits the temperature of temperature scaling
    ensemble_probabilities      averages the predictions of several models
    Uncertainty                 entropy, mutual information and variance of an ensemble
    out_of_distribution_auroc   measures how well a score finds strange examples

One example at a time
    per_example_losses          computes the loss of each example of a split
    per_example_margins         computes the margin of each example of a split
    per_example_logits          computes the logits of each example of a split
    per_example_gradients       computes the gradient of each example of a split
    per_example_gradient_norms  computes the gradient norm of each example of a split
    per_example_projected_gradients  projects the gradient of each example to few numbers
    gradient_similarity         computes the dot products of the gradients of examples
    one_example_loss            returns the loss of one example as a function, for ``vmap``
    one_example_margin          returns the margin of one example as a function
    one_example_gradient_norm   returns the gradient norm of one example as a function
    RecordDynamics              records each training example in each epoch of ``fit``
    load_dynamics               loads what a run recorded
    Dynamics                    loss, margin and more of each example in each epoch
    DataMap                     coordinates of each example in a data map
    el2n                        scores examples by the error of several models
    grand                       scores examples by the gradient norms of several models
    memorisation                estimates which examples must be seen to be predicted
    subset_influence            estimates what each example changes in other predictions
    find_label_errors           finds examples whose label is probably wrong
    LabelErrors                 labels, and the predictions of models that never saw them
    influence_scores            estimates how training examples influence the loss of others
    influence_features          computes features whose dot products estimate these scores
    precondition_features       makes them predict what leaving an example out would do
    load_explainer              finds the training examples that a prediction of a run rests on
    Explainer                   explains predictions by training examples
    Explanation                 helpful and opposing training examples of a prediction

Classify pictures
    predict_image               classifies one picture of a digit
    load_predictor              loads the network of a run, or the one that comes trained
    Predictor                   classifies many pictures with one network
    Prediction                  class, probabilities, and the picture as the network saw it
    prepare_image               converts a picture to the format of MNIST
    prepare_images              converts a picture of several digits, one image for each

Export models
    export_run                  writes the model of a run for other programs
    load_export                 loads an exported ``json`` or ``safetensors`` file
    load_stablehlo              loads an exported ``stablehlo`` file

Errors
    InputError                  a flag, file or directory cannot be used
    LostProcessError            another process of the run has ended
    NonFiniteLossError          the loss became NaN or infinite

A name is loaded on first use, so that ``python -m mnist_jax.train --help`` does not wait for JAX.
"""

import sys

# "-m" stands for the module to run while Python imports its package; orig_argv has the name.
if "".join(sys.argv[:1]).rpartition("/")[2] == "mnist-jax" or (
    sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").split(".")[0] == __name__ for word in sys.orig_argv)
):  # a command starts: from here on a signal ends it at once
    from mnist_jax.training.signals import leave_on_signals

    leave_on_signals()

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("mnist_jax")
except PackageNotFoundError:  # not installed: imported from a source tree
    __version__ = "unknown"
