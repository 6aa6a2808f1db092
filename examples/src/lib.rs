//! Examples that compile and run in the test suite: see the files beside this package.
