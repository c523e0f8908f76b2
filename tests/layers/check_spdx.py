"""Runs test_sbom (argument 1) and holds the documents that it makes to the rules of SPDX 2.3: its JSON schema's
(names, types, required members, formats) and those that a schema cannot say (what refers to what, licences,
package URLs). They were also read without a complaint by spdx-tools 0.8.3, which is not needed here.

To do that again: python3 -m venv V; V/bin/pip install spdx-tools==0.8.3
                  CB_SPDX_OUT=DIR test_layers_sbom; V/bin/pyspdxtools -i DIR/debian.spdx.json"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ID = re.compile(r"SPDXRef-[A-Za-z0-9.-]+")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
ACTOR = re.compile(r"(Person|Organization): [^()]+( \([^()]*\))?|NOASSERTION")
PURL = re.compile(r"pkg:(deb|apk|rpm|oci)/[A-Za-z0-9._~%:-]+(/[A-Za-z0-9._~%:-]+)?@[A-Za-z0-9._~%:-]+"
                  r"(\?[a-z_]+=[A-Za-z0-9._~%:/-]+(&[a-z_]+=[A-Za-z0-9._~%:/-]+)*)?")
LICENSE = re.compile(r"(LicenseRef-[A-Za-z0-9.-]+|[A-Za-z0-9.+-]+|AND|OR|WITH|[() ])+")
DOCUMENT = {"spdxVersion", "dataLicense", "SPDXID", "name", "comment", "creationInfo", "packages", "relationships",
            "documentNamespace", "hasExtractedLicensingInfos"}
PACKAGE = {"SPDXID", "name", "versionInfo", "downloadLocation", "filesAnalyzed", "supplier", "licenseConcluded",
           "licenseDeclared", "copyrightText", "externalRefs", "sourceInfo", "primaryPackagePurpose", "checksums",
           "comment"}


def fits(pattern, text):
    assert isinstance(text, str) and pattern.fullmatch(text), (pattern.pattern, text)


def check_package(p, licenses):
    assert set(p) <= PACKAGE, set(p) - PACKAGE
    fits(ID, p["SPDXID"])
    assert p["name"] and p["downloadLocation"] == "NOASSERTION" and p["filesAnalyzed"] is False
    assert p["copyrightText"] == p["licenseConcluded"] == "NOASSERTION"
    fits(ACTOR, p.get("supplier", "NOASSERTION"))
    fits(LICENSE, p["licenseDeclared"])
    for ref in re.findall(r"LicenseRef-[A-Za-z0-9.-]+", p["licenseDeclared"]):
        assert ref in licenses, ref
    for ref in p.get("externalRefs", []):
        assert ref["referenceCategory"] == "PACKAGE-MANAGER" and ref["referenceType"] == "purl"
        fits(PURL, ref["referenceLocator"])
        keys = re.findall(r"[?&]([a-z_]+)=", ref["referenceLocator"])
        assert keys == sorted(keys), keys
    for sum_ in p.get("checksums", []):
        assert sum_["algorithm"] == "SHA256"
        fits(re.compile("[0-9a-f]{64}"), sum_["checksumValue"])


def unique_keys(pairs):
    assert len({k for k, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def check(text):
    d = json.loads(text, object_pairs_hook=unique_keys)
    assert set(d) <= DOCUMENT, set(d) - DOCUMENT
    assert d["spdxVersion"] == "SPDX-2.3" and d["dataLicense"] == "CC0-1.0" and d["SPDXID"] == "SPDXRef-DOCUMENT"
    fits(re.compile(r"https://[a-z./-]+[A-Za-z0-9.-]+-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
         d["documentNamespace"])
    fits(TIME, d["creationInfo"]["created"])
    for c in d["creationInfo"]["creators"]:
        fits(re.compile(r"Tool: [a-z-]+-[0-9.]+"), c)
    licenses = {x["licenseId"]: x["extractedText"] for x in d.get("hasExtractedLicensingInfos", [])}
    assert len(licenses) == len(d.get("hasExtractedLicensingInfos", [])) and all(licenses.values())
    ids = [p["SPDXID"] for p in d["packages"]]
    assert len(set(ids)) == len(ids)
    for p in d["packages"]:
        check_package(p, licenses)
    related = set()
    for r in d["relationships"]:
        assert r["spdxElementId"] in [*ids, "SPDXRef-DOCUMENT"] and r["relatedSpdxElement"] in ids, r
        assert r["relationshipType"] in ("DESCRIBES", "CONTAINS", "DESCENDANT_OF")
        related.add(r["relatedSpdxElement"])
    assert related == set(ids), set(ids) - related
    return len(ids)


def main():
    with tempfile.TemporaryDirectory() as dir_:
        subprocess.run([sys.argv[1]], check=True, env=os.environ | {"CB_SPDX_OUT": dir_}, stdout=subprocess.DEVNULL)
        files = sorted(Path(dir_).iterdir())
        assert len(files) == 6, files
        for f in files:
            print(f.name, check(f.read_text(encoding="utf-8")), "packages")


main()
