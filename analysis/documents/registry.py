"""The five documents, by the name of their data set: `report: {published: cub200}` in a sweep names one."""

from analysis.documents.cifar10 import CIFAR10
from analysis.documents.claims import EXPLAINED, claims_table
from analysis.documents.cub200 import CUB200
from analysis.documents.document import Document, Rows, differences, stand_ins
from analysis.documents.flowers102 import FLOWERS102
from analysis.documents.hymenoptera import HYMENOPTERA
from analysis.documents.mnist import MNIST

DOCUMENTS: dict[str, Document] = {
    "cifar10": CIFAR10,
    "hymenoptera": HYMENOPTERA,
    "mnist": MNIST,
    "cub200": CUB200,
    "flowers102": FLOWERS102,
}


def document_section(document: Document, rows: Rows) -> str:
    """The document's own table with what was measured beside it, and what becomes of its conclusions."""
    if not any(row.role != "teacher" for row in rows):
        return f"## As the document has it\n\n{document.title}. Nothing is confirmed yet.\n"
    differing = differences(document, rows)
    setting = f" Here otherwise than there (in brackets): {', '.join(differing)}." if differing else ""
    if others := stand_ins(document, rows):
        setting += f" Not its networks: {', '.join(others)}."
    claims = document.claims(rows)
    concluded = (
        f"### What the document concludes\n\n{claims_table(claims)}\n{EXPLAINED}"
        if claims
        else "The document prints no comparison that could be checked here.\n"
    )
    return f"## As the document has it\n\n{document.title}.{setting}\n\n{document.table(rows)}\n{concluded}"
