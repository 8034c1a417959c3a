"""Sphinx extension: plain Markdown links reach labelled statements, `[Theorem 1.1](#thm-mean)`.

Such a link stays readable where directives are unknown (GitHub, Colab), unlike `{prf:ref}`. Its
number is typed by hand, so a number that disagrees with the statement's own is a build warning.
"""

import re

from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinx_proof.domain import ProofDomain

logger = logging.getLogger(__name__)


def resolve_any_xref(self, env, fromdocname, builder, target, node, contnode):
    statement = env.proof_list.get(target)
    if statement is None:
        return []
    kind, page = statement["countertype"], statement["docname"]
    number = ".".join(map(str, env.toc_fignumbers.get(page, {}).get(kind, {}).get(target, ())))
    typed = re.search(r"\d+(\.\d+)*", contnode.astext())
    if typed and typed.group() != number:
        logger.warning(
            "link '%s' to %s: its number is %s", contnode.astext(), target, number, location=node
        )
    return [("prf:ref", make_refnode(builder, fromdocname, page, target, contnode))]


def setup(app):
    ProofDomain.resolve_any_xref = resolve_any_xref
    return {"parallel_read_safe": True, "parallel_write_safe": True}
