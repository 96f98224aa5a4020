//! Pure: which profiles the AWS files have, for errors about one that they do not.

/// The profiles of the two files' texts, each once, in order.
pub(super) fn names(config: &str, credentials: &str) -> Vec<String> {
    let of_config = sections(config).filter_map(|section| match section.split_once(char::is_whitespace) {
        Some(("profile", name)) => Some(name.trim()),
        // `sso-session` and `services` are no profiles.
        Some(_) => None,
        None => (section == "default").then_some(section),
    });
    let mut names: Vec<String> = of_config.chain(sections(credentials)).map(unquoted).collect();
    names.sort();
    names.dedup();
    names
}

fn sections(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| Some(line.trim().strip_prefix('[')?.split_once(']')?.0.trim()))
}

fn unquoted(name: &str) -> String {
    let bare = ['"', '\''].iter().find_map(|quote| name.strip_prefix(*quote)?.strip_suffix(*quote));
    bare.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_both_files_are_named_once() {
        let config = "# [profile no]\n[default]\nregion = x\n[profile dev]\n[sso-session corp]\n[ profile 'my prod' ] ; x\n[dev2]\n";
        let credentials = "[dev]\naws_access_key_id = x\n[old]\n";
        assert_eq!(names(config, credentials), ["default", "dev", "my prod", "old"]);
        assert!(names("", "not a file").is_empty());
    }
}
