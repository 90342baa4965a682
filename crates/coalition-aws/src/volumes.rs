//! Disks that stayed behind.

use coalition_cloud::{ErrorKind, one_line};
use std::collections::BTreeMap;

use crate::action::Action;
use crate::client::Ec2;
use crate::error::AwsError;
use crate::form::Form;
use crate::ids::VolumeId;
use crate::xml::Element;

/// Most pages read.
const MAX_PAGES: usize = 100;

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// `creating`, `available` (attached to nothing), `in-use`, …
    pub status: String,
    /// Size, in GiB.
    pub size_gib: u32,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl Ec2 {
    /// Every volume with these tags that is attached to nothing.
    ///
    /// # Errors
    /// [`AwsError`]; nothing may be concluded then.
    pub async fn detached_volumes(&self, tags: &[(&str, &str)]) -> Result<Vec<Volume>, AwsError> {
        let action = Action::DescribeVolumes;
        let mut found = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut form = Form::of(action);
            for (i, (key, value)) in tags.iter().enumerate() {
                form.filter(i + 1, &format!("tag:{key}"), [*value]);
            }
            form.filter(tags.len() + 1, "status", ["available"]);
            form.set("MaxResults", "500");
            if let Some(next) = &next {
                form.set("NextToken", next);
            }
            let root = self.query(action, form).await?;
            let (page, token) = read_page(&root).map_err(|problem| AwsError::Garbled { action, problem })?;
            // Asked for, and looked at again: what is deleted afterwards cannot be had back.
            let fits = |volume: &Volume| {
                let tagged = tags.iter().all(|(key, value)| volume.tags.get(*key).is_some_and(|has| has == value));
                volume.status == "available" && tagged
            };
            found.extend(page.into_iter().filter(fits));
            match token {
                Some(token) => next = Some(token),
                None => return Ok(found),
            }
        }
        Err(AwsError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }

    /// Deletes a volume. Succeeds when it is gone already.
    ///
    /// # Errors
    /// [`AwsError`]; of kind conflict when it is attached.
    pub async fn delete_volume(&self, id: &VolumeId) -> Result<(), AwsError> {
        let mut form = Form::of(Action::DeleteVolume);
        form.set("VolumeId", id.as_str());
        match self.query(Action::DeleteVolume, form).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// One page and the token of the next.
pub(crate) fn read_page(root: &Element) -> Result<(Vec<Volume>, Option<String>), String> {
    root.child("volumeSet").ok_or("it has no volumeSet")?;
    let tag = |tag: &Element| {
        Some((tag.text_at(&["key"])?.to_owned(), tag.text_at(&["value"]).unwrap_or_default().to_owned()))
    };
    let volume = |item: &Element| {
        let id = item.text_at(&["volumeId"]).unwrap_or_default().parse().map_err(|e| format!("{e}"))?;
        let status = one_line(item.text_at(&["status"]).unwrap_or_default(), 40);
        let size_gib = item.text_at(&["size"]).and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Volume { id, status, size_gib, tags: item.items("tagSet").filter_map(tag).collect() })
    };
    let page: Result<Vec<Volume>, String> = root.items("volumeSet").map(volume).collect();
    Ok((page?, root.text_at(&["nextToken"]).map(ToOwned::to_owned)))
}
