//! Names of things in Azure, checked before they are used in another request.

/// Longest name taken.
const MAX_NAME: usize = 90;

/// Whether a text is a GUID in its usual form.
pub(crate) fn is_guid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths = [8, 4, 4, 4, 12];
    let fits = |(part, length): (&&str, usize)| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    parts.len() == lengths.len() && parts.iter().zip(lengths).all(fits)
}

/// Whether a text can be the name of a resource, of a resource group or of a part of an image's name: nothing in it means
/// anything in a URL or a filter.
pub(crate) fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty()
        && text.len() <= MAX_NAME
        && text.bytes().all(inner)
        && !text.starts_with('.')
        && !text.ends_with('.')
        && !text.contains("..")
}

/// `/subscriptions/…/resourceGroups/…/providers/NAMESPACE/TYPE/NAME[/TYPE/NAME]…`; Azure compares these without case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceId {
    pub(crate) subscription: String,
    pub(crate) group: String,
    /// `Microsoft.Compute`, …
    pub(crate) namespace: String,
    /// Type and name, outermost first.
    pub(crate) path: Vec<(String, String)>,
}

impl ResourceId {
    /// Reads one; `None` when it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('/')?.split('/');
        let mut tagged = |tag: &str| {
            let word = parts.next()?;
            let value = parts.next()?;
            (word.eq_ignore_ascii_case(tag) && is_name(value)).then(|| value.to_owned())
        };
        let subscription = tagged("subscriptions").filter(|id| is_guid(id))?;
        let group = tagged("resourceGroups")?;
        let namespace = tagged("providers")?;
        let mut path = Vec::new();
        while let Some(kind) = parts.next() {
            let name = parts.next()?;
            if !is_name(kind) || !is_name(name) || path.len() == 4 {
                return None;
            }
            path.push((kind.to_owned(), name.to_owned()));
        }
        (!path.is_empty()).then_some(Self { subscription, group, namespace, path })
    }

    /// Whether it is of these types in this namespace.
    pub(crate) fn is(&self, namespace: &str, types: &[&str]) -> bool {
        let same = |((kind, _), wanted): (&(String, String), &&str)| kind.eq_ignore_ascii_case(wanted);
        self.namespace.eq_ignore_ascii_case(namespace)
            && self.path.len() == types.len()
            && self.path.iter().zip(types).all(same)
    }

    /// The innermost name.
    pub(crate) fn name(&self) -> &str {
        self.path.last().map_or("", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_without_case_and_nothing_else_is_one() {
        let text = "/Subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourcegroups/G.1/providers/microsoft.network/virtualNetworks/v/subnets/s_1";
        let id = ResourceId::parse(text).unwrap();
        assert!(id.is("Microsoft.Network", &["virtualnetworks", "subnets"]) && id.name() == "s_1");
        assert!(!id.is("Microsoft.Network", &["virtualNetworks"]));
        for wrong in [
            "",
            "/",
            "/subscriptions/x/resourceGroups/g/providers/n/t/a",
            "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/g/providers/n",
            "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/g/providers/n/t",
            "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/g/providers/n/t/a/",
            "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/../providers/n/t/a",
            "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/g/providers/n/t/a?x=1",
            "https://host/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/g/providers/n/t/a",
        ] {
            assert!(ResourceId::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!is_name("a/b") && !is_name("a..b") && !is_name("a b") && !is_name("") && is_name("c-0_1.x"));
        assert!(!is_guid("01234567-89ab-cdef-0123-456789abcdeg") && !is_guid("0123456789abcdef0123456789abcdef"));
    }
}
