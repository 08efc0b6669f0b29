//! The house rules of this repository, as pure functions over what cargo and the files say.
//!
//! Each check returns one line per violation and is silent when all is well; `tests/house.rs` runs them over the
//! repository. Beside each check stands a test that plants a small violation, so that it is known that the check can fail.
//!
//! * [`repo`] reads: the package graph, the list of files, the files
//! * [`tree`] who may depend on whom, and on what
//! * [`licence`] what the licences of dependencies say
//! * [`manifest`] what each crate must declare or share with the workspace
//! * [`text`] words, tags and places that committed text does not contain
//! * [`links`] where the links of the documentation lead
//! * [`circles`] whether imports run one way
//! * [`named`] which tests the documentation names

pub mod circles;
pub mod licence;
pub mod links;
pub mod manifest;
pub mod named;
pub mod repo;
pub mod text;
pub mod tree;
