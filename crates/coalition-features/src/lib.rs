//! Nothing. Its manifest asks for every dependency with the features that any crate of the workspace needs.
