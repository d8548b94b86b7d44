//! Values that must not reach a log line, a metric label or an error text.
//!
//! In: any value. Out: the same value, which prints as nothing. Never: formats what it holds.

use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// An account id, message hash, address or device token: data about a person.
///
/// No `Display`, no `Deref`; `Debug` is blank. Each use is found by `grep -rn 'expose()'`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Private<T>(T);

impl<T> Private<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Only for the few files that write to a wire, a row or a provider.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    pub fn into_exposed(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<private>")
    }
}

/// A key or password: zeroed on drop, not `Clone`, compared only in constant time by who uses it.
#[derive(ZeroizeOnDrop)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The key itself. Only for the few files that compute with it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_secret_values_print_as_nothing() {
        assert_eq!(format!("{:?}", Private::new("05abc")), "<private>");
        assert_eq!(format!("{:#?}", Secret::new([7u8; 32])), "<secret>");
    }
}
