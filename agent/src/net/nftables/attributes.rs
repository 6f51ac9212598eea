//! Netlink attributes as nftables writes them: numbers in network byte order, nested ones flagged.

const NESTED: u16 = 0x8000;

/// Attributes of one message or expression, encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn number(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    pub(super) fn long(self, kind: u16, number: u64) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// `NFTA_DATA_VALUE`, as expressions and elements hold their constants.
    pub(super) fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, Attributes::default().bytes(1, value))
    }

    /// `NFTA_DATA_VERDICT`
    pub(super) fn verdict(self, kind: u16, verdict: &Verdict) -> Self {
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        let mut data = Attributes::default().number(1, i32::cast_unsigned(code));
        if let Some(chain) = chain {
            data = data.text(2, chain);
        }
        self.nested(kind, Attributes::default().nested(2, data))
    }

    pub(super) fn bytes(mut self, kind: u16, bytes: &[u8]) -> Self {
        let length = (4 + bytes.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Verdict {
    Accept,
    Drop,
    /// Goes on there, and comes back.
    Jump(String),
    /// Goes on there for good.
    Goto(String),
}
