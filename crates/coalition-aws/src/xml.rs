//! Answers of the Query protocol as a small tree, with limits: an answer is outside bytes.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};

/// Longest answer read, in bytes. A page of 1,000 instances has about 5 MB.
pub const MAX_BYTES: usize = 16 << 20;
/// Deepest nesting; EC2's own answers have about twelve.
pub const MAX_DEPTH: usize = 32;
/// Most elements of one answer.
pub const MAX_ELEMENTS: usize = 400_000;

/// Why bytes are no answer.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    /// Longer than any answer.
    #[error("{found} bytes of XML; at most {MAX_BYTES} are read")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// Not UTF-8.
    #[error("the XML is not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
    /// Not well-formed.
    #[error("the XML is malformed at byte {at}")]
    Malformed {
        /// Where.
        at: u64,
        /// What the parser says.
        #[source]
        source: Box<quick_xml::Error>,
    },
    /// More than [`MAX_DEPTH`] or [`MAX_ELEMENTS`].
    #[error("the XML has more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A document type, an entity of its own, or anything else no answer has.
    #[error("the XML has {what}, which no answer of AWS has")]
    Forbidden {
        /// What.
        what: &'static str,
    },
    /// No element, more than one, or one that does not end.
    #[error("the XML is not one whole element")]
    NotOne,
}

/// One element; attributes are ignored, names lose their prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Local name.
    pub name: String,
    /// Its own text, without that of its children.
    pub text: String,
    /// What is inside.
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The element at the end of this path of names.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |here, name| here.child(name))
    }

    /// The text at the end of this path; nothing when it is empty.
    #[must_use]
    pub fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path).map(|found| found.text.trim()).filter(|text| !text.is_empty())
    }

    /// Children of the child `list` that are called `item`: how EC2 writes lists.
    pub fn items(&self, list: &str) -> impl Iterator<Item = &Self> {
        self.child(list).into_iter().flat_map(|list| &list.children).filter(|child| child.name == "item")
    }
}

/// Parses one answer.
///
/// # Errors
/// [`XmlError`]; the input is never kept.
pub fn parse(bytes: &[u8]) -> Result<Element, XmlError> {
    if bytes.len() > MAX_BYTES {
        return Err(XmlError::TooLong { found: bytes.len() });
    }
    let text = std::str::from_utf8(bytes)?;
    let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut tree = Tree::default();
    loop {
        let event = reader
            .read_event()
            .map_err(|error| XmlError::Malformed { at: reader.error_position(), source: Box::new(error) });
        match event? {
            Event::Start(tag) => tree.open(tag.local_name().as_ref())?,
            Event::Empty(tag) => {
                tree.open(tag.local_name().as_ref())?;
                tree.close()?;
            }
            Event::End(_) => tree.close()?,
            Event::Text(text) => tree.text(&text.xml10_content())?,
            Event::CData(text) => tree.text(&text.xml10_content())?,
            Event::GeneralRef(entity) => tree.text(resolve(&entity)?.encode_utf8(&mut [0; 4]))?,
            Event::DocType(_) => return Err(XmlError::Forbidden { what: "a document type" }),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            Event::Eof => return tree.done(),
        }
    }
}

fn resolve(entity: &BytesRef<'_>) -> Result<char, XmlError> {
    let unknown = XmlError::Forbidden { what: "an entity of its own" };
    match &**entity {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        _ => entity.resolve_char_ref().ok().flatten().ok_or(unknown),
    }
}

/// The tree while it is read.
#[derive(Default)]
struct Tree {
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
}

impl Tree {
    fn open(&mut self, name: &str) -> Result<(), XmlError> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(XmlError::TooMuch { what: "elements", limit: MAX_ELEMENTS });
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::TooMuch { what: "levels", limit: MAX_DEPTH });
        }
        if self.root.is_some() {
            return Err(XmlError::NotOne);
        }
        self.open.push(Element { name: name.to_owned(), ..Element::default() });
        Ok(())
    }

    fn close(&mut self) -> Result<(), XmlError> {
        let done = self.open.pop().ok_or(XmlError::NotOne)?;
        match self.open.last_mut() {
            Some(parent) => parent.children.push(done),
            None => self.root = Some(done),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        match self.open.last_mut() {
            Some(here) => here.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(XmlError::NotOne),
        }
        Ok(())
    }

    fn done(self) -> Result<Element, XmlError> {
        if self.open.is_empty() { self.root.ok_or(XmlError::NotOne) } else { Err(XmlError::NotOne) }
    }
}
