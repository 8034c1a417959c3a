"""Sphinx extension: plain Markdown links reach labelled statements, `[Theorem 1.1](#thm-mean)`.

Such a link stays readable where directives are unknown (GitHub, Colab), unlike `{prf:ref}`. Its
number is typed by hand, so a number that disagrees with the statement's own is a build warning.
"""

import re

from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinx_proof.domain import ProofDomain

logger = logging.getLogger(__name__)


def number(env, page, counter, label) -> str:
    """The number that the built page shows, such as `7.1`."""
    found = env.toc_fignumbers.get(page, {}).get(counter, {}).get(label, ())
    return ".".join(map(str, found))


def resolve_any_xref(self, env, fromdocname, builder, target, node, contnode):
    statement = env.proof_list.get(target)
    if statement is None:
        return []
    page, text = statement["docname"], contnode.astext()
    true = number(env, page, statement["countertype"], target)
    typed = re.search(r"\d+(\.\d+)*", text)
    if typed and typed.group() != true:
        logger.warning("link '%s' to %s: its number is %s", text, target, true, location=node)
    return [("prf:ref", make_refnode(builder, fromdocname, page, target, contnode))]


def setup(app):
    ProofDomain.resolve_any_xref = resolve_any_xref
    return {"parallel_read_safe": True, "parallel_write_safe": True}
