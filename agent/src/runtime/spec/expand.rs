//! `$(VAR)` references in commands, arguments and values.

/// Replaces `$(NAME)` by the value that `lookup` gives. `$$` is a dollar sign, so `$$(NAME)` is
/// the text `$(NAME)`; a name without a value stays as it is written (Kubernetes'
/// `third_party/forked/golang/expansion`).
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        result.push_str(&rest[..start]);
        let after = &rest[start + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = reference(after) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => result.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// Splits `(NAME)tail`.
fn reference(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('(')?.split_once(')')
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn references_are_replaced() {
        let lookup = |name: &str| (name == "A").then(|| "a$(B)".to_owned());
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a$(B)"),
            ("x$(A)y$(A)", "xa$(B)ya$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a$(B)"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$", "$"),
            ("$$", "$"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
