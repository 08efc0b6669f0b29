//! What a visitor has seen acknowledged, and what an answer may therefore show.

use crate::demo::shop::{CATALOGUE, View};
use std::collections::BTreeMap;

/// What a visitor may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Look,
    Add(&'static str),
    Remove(&'static str),
    /// Leaves a word in the session, to notice if it ever gets somebody else's.
    Sign,
    Login,
    Logout,
}

/// What must be in the session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) cart: BTreeMap<String, u32>,
    pub(crate) version: u64,
    pub(crate) user: Option<String>,
    pub(crate) note: Option<String>,
}

impl Model {
    pub(crate) fn of(view: &View) -> Model {
        Model { cart: view.cart.clone(), version: view.version, user: view.user.clone(), note: view.note.clone() }
    }

    /// What is there after a step of `me`.
    pub(crate) fn after(&self, step: Step, me: &str) -> Model {
        let mut next = self.clone();
        match step {
            Step::Look => {}
            Step::Add(sku) => *next.cart.entry(sku.to_owned()).or_default() += 1,
            Step::Remove(sku) => {
                let count = next.cart.entry(sku.to_owned()).or_default();
                *count = count.saturating_sub(1);
            }
            Step::Sign => next.note = Some(me.to_owned()),
            Step::Login => next.user = Some(me.to_owned()),
            Step::Logout => return Model::default(),
        }
        next.cart.retain(|_, count| *count > 0);
        next.version += u64::from(matches!(step, Step::Add(_) | Step::Remove(_)));
        next
    }

    pub(crate) fn things(&self) -> u32 {
        self.cart.values().sum()
    }
}

/// What should be there and what is, in words.
pub(crate) fn differences(expected: &Model, got: &Model) -> String {
    let mut words = Vec::new();
    for (sku, name) in CATALOGUE {
        let count = |model: &Model| model.cart.get(sku).copied().unwrap_or_default();
        if count(expected) != count(got) {
            words.push(format!("{name} \u{d7}{} instead of \u{d7}{}", count(got), count(expected)));
        }
    }
    for (what, want, have) in [("the sign-in", &expected.user, &got.user), ("the note", &expected.note, &got.note)] {
        match (want, have) {
            (want, have) if want == have => {}
            (_, None) => words.push(format!("{what} is gone")),
            (_, Some(have)) => words.push(format!("{what} is {have:?}")),
        }
    }
    if expected.version != got.version {
        words.push(format!("change {} instead of {}", got.version, expected.version));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_named() {
        let one = Model::default().after(Step::Add("bell"), "7").after(Step::Login, "7");
        let two = one.after(Step::Add("bell"), "7");
        let said = differences(&two, &Model { user: None, ..one });
        assert_eq!(said, "Bell \u{d7}1 instead of \u{d7}2, the sign-in is gone, change 1 instead of 2");
    }
}
