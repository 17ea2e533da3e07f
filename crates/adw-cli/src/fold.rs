//! Fold that a training leaves out for validation.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Fold of a cross-validation, or all cases together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    /// Number of the fold whose cases are left out of the training.
    Number(usize),
    /// No case is left out.
    All,
}

impl FromStr for Fold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::Number).map_err(|_| "expected a number such as 0, or all".to_owned()),
        }
    }
}

impl fmt::Display for Fold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::All => f.write_str("all"),
        }
    }
}

impl Serialize for Fold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => number.serialize(serializer),
            Self::All => serializer.serialize_str("all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_numbers_or_all() {
        assert_eq!("3".parse(), Ok(Fold::Number(3)));
        assert_eq!("all".parse(), Ok(Fold::All));
        assert!("-1".parse::<Fold>().is_err() && "ALL".parse::<Fold>().is_err());
        assert_eq!((Fold::Number(3).to_string(), Fold::All.to_string()), ("3".into(), "all".into()));
    }
}
