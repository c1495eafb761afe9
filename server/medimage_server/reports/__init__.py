"""Chest X-ray reports, as CXRReportGen and MAIRA-2 write them: from a study to its findings."""
